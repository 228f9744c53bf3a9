//! The layer of experts alone: routing, output, gradients, z-loss.

use dfdx::prelude::*;

use super::{Tape, check, flat, read, setting, tokens};
use crate::ops::experts::choose::capacity;
use crate::ops::experts::{self, Choice, Groups};
use crate::ops::{Backend, Experts, Packs, Routed, Routing};

type Form = fn(crate::ops::Tokens<Cpu, Tape>, &Experts<Cpu>, &Routing) -> Result<Routed<Cpu, Tape>, CpuError>;

/// A setting as the decimal number that it was written as.
fn decimal(golden: &testkit::golden::Golden, name: &str) -> f64 {
    setting(golden, name).to_string().parse().unwrap()
}

#[test]
fn experts_are_the_references() {
    let golden = read("moe");
    for case in golden.cases().into_iter().filter(|case| golden.has(&format!("{case}/x"))) {
        let at = |name: &str| format!("{case}/{name}");
        let x = tokens(&golden, &at("x"));
        let (n, t, _) = *x.shape();
        let n_groups = setting(&golden, &at("cfg/n_groups")) as usize;
        let group = n * t / n_groups;
        let layer = Experts {
            router_scale: None,
            norm: None,
            router: flat(&golden, &at("param/router/kernel")),
            wi: flat(&golden, &at("param/experts/wi/kernel")),
            wo: flat(&golden, &at("param/experts/wo/kernel")),
            packs: Packs::default(),
        };
        let n_experts = setting(&golden, &at("cfg/n_experts")) as usize;
        let capacity_factor = decimal(&golden, &at("cfg/capacity_factor"));
        let routing = Routing {
            n_experts,
            choice: Choice::Experts,
            capacity_factor,
            groups: Groups::OfAtMost(group),
            z_weight: 1.0,
            balance_weight: 0.0,
        };
        let (logits, probs, chosen) = experts::route(&x, &layer, &routing);
        check(&golden, &at("logits"), &logits);
        check(&golden, &at("probs"), &probs);
        let c = setting(&golden, &at("cfg/capacity")) as usize;
        let (mut idx, mut gate, mut n_experts_of_token) = (Vec::new(), Vec::new(), vec![0; n * t]);
        for g in 0..n_groups {
            for (expert, tokens) in chosen.iter().enumerate() {
                let of_group = &tokens[g * c..(g + 1) * c];
                idx.extend(of_group.iter().map(|&token| token as i32 - (g * group) as i32));
                gate.extend(of_group.iter().map(|&token| probs[token as usize * n_experts + expert]));
                of_group.iter().for_each(|&token| n_experts_of_token[token as usize] += 1);
            }
        }
        assert_eq!(idx, golden.i32s(&at("idx")).unwrap(), "{case}");
        check(&golden, &at("gate"), &gate);
        assert_eq!(n_experts_of_token, golden.i32s(&at("n_experts_of_token")).unwrap(), "{case}");

        let forms: [Form; 2] = [Cpu::experts::<Tape>, experts::stock::<Cpu, Tape>];
        for form in forms {
            let Routed { tokens: y, router_loss, stats } = form(x.retaped::<Tape>(), &layer, &routing).unwrap();
            check(&golden, &at("y"), &y.as_vec());
            check(&golden, &at("z_loss"), &[stats.z_loss]);
            check(&golden, &at("z_loss"), &router_loss.as_vec());
            check(&golden, &at("unrouted_fraction"), &[stats.unrouted]);
            check(&golden, &at("router_confidence"), &[stats.confidence]);
            let of_y = gradients_of!(y, golden, &at("dy"));
            let Routed { tokens, router_loss, .. } = form(x.retaped::<Tape>(), &layer, &routing).unwrap();
            let of_z = router_loss.put_tape(tokens.split_tape().1).backward();
            for (root, grads) in [("grad", of_y), ("zgrad", of_z)] {
                let mut grads = grads;
                check(&golden, &at(&format!("{root}/x")), &grads.get(&x).as_vec());
                let kernels = [("router", &layer.router), ("experts/wi", &layer.wi), ("experts/wo", &layer.wo)];
                for (name, tensor) in kernels {
                    let got = grads.get_or_alloc_mut(tensor).unwrap().to_vec();
                    match golden.has(&at(&format!("{root}/{name}/kernel"))) {
                        true => check(&golden, &at(&format!("{root}/{name}/kernel")), &got),
                        // The z-loss does not touch the experts.
                        false => assert!(got.iter().all(|&g| g == 0.0), "{case} {root}/{name}"),
                    }
                }
            }
        }
    }
}

#[test]
fn capacities_are_the_references() {
    let golden = read("moe");
    for row in golden.i32s("capacity_table/rows").unwrap().chunks_exact(4) {
        let [n_tokens, n_experts, percent, wanted] = [0, 1, 2, 3].map(|i| row[i] as usize);
        assert_eq!(capacity(percent as f64 / 100.0, n_tokens, n_experts), wanted, "{row:?}");
    }
}
