//! The learning rate of every update.
//!
//! In: `[train.schedule]`'s rates and lengths. Out: `lr_at(step)`, f64, the first update being step 0. Never: state.
//! Source: the authors' release (pre-warm-up, warm-up, cosine), restated in IMP.md section 9.

use serde::{Deserialize, Serialize};

/// Rates and lengths, as the config spells them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSchedule {
    pub peak_lr: f64,
    /// Rate at the start of the warm-up and the end of the pre-warm-up.
    #[serde(default)]
    pub init_lr: f64,
    /// Rate that the cosine ends at and stays at.
    #[serde(default)]
    pub end_lr: f64,
    #[serde(default)]
    pub warmup_steps: u64,
    /// Length of warm-up and cosine together.
    pub decay_steps: u64,
    /// Length of the pre-warm-up; it shifts everything after it.
    #[serde(default)]
    pub pre_steps: u64,
    #[serde(default)]
    pub pre_init_lr: f64,
}

/// Holds: `warmup_steps < decay_steps`, `0 < peak_lr`, no rate negative, `end_lr <= peak_lr`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Schedule(RawSchedule);

/// A schedule that cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    #[error("`train.schedule.{key}` is {found}, must be {rule}")]
    Value { key: &'static str, found: f64, rule: String },
}

impl TryFrom<RawSchedule> for Schedule {
    type Error = ScheduleError;

    fn try_from(raw: RawSchedule) -> Result<Self, ScheduleError> {
        let rule = |holds: bool, key, found, rule: &str| match holds {
            true => Ok(()),
            false => Err(ScheduleError::Value { key, found, rule: rule.to_owned() }),
        };
        let rate = |value: f64| value.is_finite() && value >= 0.0;
        rule(rate(raw.peak_lr) && raw.peak_lr > 0.0, "peak_lr", raw.peak_lr, "a number above 0")?;
        rule(rate(raw.init_lr), "init_lr", raw.init_lr, "a number of at least 0")?;
        rule(rate(raw.pre_init_lr), "pre_init_lr", raw.pre_init_lr, "a number of at least 0")?;
        let floor = format!("between 0 and `train.schedule.peak_lr` ({})", raw.peak_lr);
        rule(rate(raw.end_lr) && raw.end_lr <= raw.peak_lr, "end_lr", raw.end_lr, &floor)?;
        let short = format!("below `train.schedule.decay_steps` ({})", raw.decay_steps);
        rule(raw.warmup_steps < raw.decay_steps, "warmup_steps", raw.warmup_steps as f64, &short)?;
        Ok(Self(raw))
    }
}

impl Schedule {
    /// Learning rate of update `step`; the first is 0.
    pub fn lr_at(&self, step: u64) -> f64 {
        let s = &self.0;
        let linear = |from: f64, to: f64, done: u64, of: u64| from + (to - from) * done as f64 / of as f64;
        if step < s.pre_steps {
            return linear(s.pre_init_lr, s.init_lr, step, s.pre_steps);
        }
        let u = step - s.pre_steps;
        if u < s.warmup_steps {
            return linear(s.init_lr, s.peak_lr, u, s.warmup_steps);
        }
        let q = ((u - s.warmup_steps) as f64 / (s.decay_steps - s.warmup_steps) as f64).min(1.0);
        s.end_lr + (s.peak_lr - s.end_lr) * (1.0 + (std::f64::consts::PI * q).cos()) / 2.0
    }

    /// The highest rate.
    pub fn peak_lr(&self) -> f64 {
        self.0.peak_lr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: RawSchedule = RawSchedule {
        peak_lr: 1.0,
        init_lr: 0.1,
        end_lr: 0.2,
        warmup_steps: 10,
        decay_steps: 30,
        pre_steps: 4,
        pre_init_lr: 0.5,
    };

    #[test]
    fn every_piece_starts_where_the_one_before_ends() {
        let schedule = Schedule::try_from(RAW).unwrap();
        let got = [0, 4, 14, 24, 34, 1000].map(|step| (schedule.lr_at(step) * 1e9).round() / 1e9);
        assert_eq!(got, [0.5, 0.1, 1.0, 0.6, 0.2, 0.2]);
    }

    #[test]
    fn a_schedule_that_cannot_be_is_refused_with_key_value_and_rule() {
        let cases = [
            (RawSchedule { warmup_steps: 30, ..RAW }, "`train.schedule.warmup_steps` is 30, must be below"),
            (RawSchedule { peak_lr: 0.0, ..RAW }, "`train.schedule.peak_lr` is 0, must be a number above 0"),
            (RawSchedule { end_lr: 2.0, ..RAW }, "`train.schedule.end_lr` is 2, must be between 0 and"),
            (RawSchedule { init_lr: f64::NAN, ..RAW }, "`train.schedule.init_lr` is NaN"),
        ];
        for (raw, want) in cases {
            let message = Schedule::try_from(raw).unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
        }
    }
}
