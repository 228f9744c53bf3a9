//! Text of corpora: globs, nearest names, captions out of what people have.
//!
//! In: bytes and strings of tables and sidecars. Out: captions and labels, or the reason why not. Never: I/O.

use std::collections::HashSet;

use imp_schemas::reject::RejectReason;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why something is not kept: a reason, and what was found and wanted.
pub(crate) type Refusal = (RejectReason, String);

/// Captions and labels of one record, as far as they are known; the first label stands for the record where one must.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wording {
    pub(crate) captions: Vec<String>,
    pub(crate) labels: Vec<String>,
}

impl Wording {
    /// Cuts each label at every `separator`; blank parts are none.
    pub(crate) fn split_labels(&mut self, separator: &str) {
        let parts = self.labels.iter().flat_map(|label| label.split(separator)).map(str::trim);
        self.labels = parts.filter(|part| !part.is_empty()).map(str::to_owned).collect();
    }
}

/// Captions above which a set knows those that stand already: a text file of 4 MiB may hold a million.
const MANY_CAPTIONS: usize = 16;

/// What several files or rows say about one record.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    pub(crate) wording: Wording,
    seen: Option<HashSet<String>>,
}

impl Merged {
    pub(crate) fn of(wording: Wording) -> Self {
        Self { wording, seen: None }
    }

    pub(crate) fn says(&mut self, caption: &str) -> bool {
        let captions = &self.wording.captions;
        if captions.len() <= MANY_CAPTIONS {
            return captions.iter().any(|stands| stands == caption);
        }
        self.seen.get_or_insert_with(|| captions.iter().cloned().collect()).contains(caption)
    }

    /// Adds what `other` says; a caption that stands already is not taken twice, the labels that came first stay.
    pub(crate) fn add(&mut self, other: Wording) {
        for caption in other.captions {
            if self.says(&caption) {
                continue;
            }
            if let Some(seen) = &mut self.seen {
                seen.insert(caption.clone());
            }
            self.wording.captions.push(caption);
        }
        if self.wording.labels.is_empty() {
            self.wording.labels = other.labels;
        }
    }
}

/// `; did you mean …?` for the name of `have` that is nearest to `found`, empty if none is near.
pub(crate) fn did_you_mean(found: &str, have: &[&str]) -> String {
    let near = have.iter().map(|name| (strsim::damerau_levenshtein(&found.to_lowercase(), &name.to_lowercase()), name));
    match near.min() {
        Some((distance, name)) if distance <= 1 + found.chars().count() / 2 => format!("; did you mean `{name}`?"),
        _ => String::new(),
    }
}

/// Whether `text` matches `glob`: `*` is any run of characters, `/` included, `?` any one.
pub(crate) fn matches_glob(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    // The last `*` seen and where the text stood there: on a mismatch it takes one character more.
    let (mut g, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match glob.get(g) {
            Some('*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    g = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&c| c == '*')
}

/// UTF-8 without a byte order mark.
pub(crate) fn utf8<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, Refusal> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        let detail = format!("{what}: byte {at} is 0x{:02x}, wanted UTF-8", bytes.get(at).copied().unwrap_or(0));
        (RejectReason::InvalidText, detail)
    })
}

/// A `.txt` sidecar: a caption a line, blank lines skipped.
pub(crate) fn read_txt(bytes: &[u8], what: &str) -> Result<Wording, Refusal> {
    let lines = utf8(bytes, what)?.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(Wording { captions: lines.map(str::to_owned).collect(), labels: Vec::new() })
}

/// A `.cls` sidecar: a class's index or name.
pub(crate) fn read_cls(bytes: &[u8], what: &str) -> Result<Wording, Refusal> {
    let label = utf8(bytes, what)?.trim();
    let label = Some(label.to_owned()).filter(|label| !label.is_empty());
    Ok(Wording { captions: Vec::new(), labels: label.into_iter().collect() })
}

/// A `.json` sidecar: `captions`, `caption` or `text`, and `label` or `labels`, either of which may be a list.
pub(crate) fn read_json(bytes: &[u8], what: &str) -> Result<Wording, Refusal> {
    let malformed = |detail: String| (RejectReason::MalformedRow, format!("{what}: {detail}"));
    let value: Value = serde_json::from_str(utf8(bytes, what)?).map_err(|e| malformed(e.to_string()))?;
    let Value::Object(object) = value else {
        return Err(malformed("the JSON is no object with `caption`, `captions`, `text` or `label`".to_owned()));
    };
    let mut merged = Merged::default();
    for key in ["captions", "caption", "text"] {
        if let Some(value) = object.get(key) {
            let captions = captions_of(value).map_err(|d| malformed(format!("`{key}` {d}")))?;
            merged.add(Wording { captions, labels: Vec::new() });
        }
    }
    for key in ["label", "labels"] {
        if let Some(value) = object.get(key) {
            merged.wording.labels.extend(labels_of(value).map_err(|d| malformed(format!("`{key}` {d}")))?);
        }
    }
    Ok(merged.wording)
}

/// Captions of a JSON value: a string, or a list of strings; blank ones are left out.
pub(crate) fn captions_of(value: &Value) -> Result<Vec<String>, String> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty())),
        Value::Null => Ok(None),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(format!("is {}, wanted a string or a list of strings", name_of(value)))
        }
    };
    each_of(value, one)
}

/// Labels of a JSON value: one, as [`label_of`] reads it, or a list of such.
pub(crate) fn labels_of(value: &Value) -> Result<Vec<String>, String> {
    each_of(value, label_of)
}

fn each_of(value: &Value, one: impl Fn(&Value) -> Result<Option<String>, String>) -> Result<Vec<String>, String> {
    match value {
        Value::Array(values) => values.iter().filter_map(|v| one(v).transpose()).collect(),
        other => Ok(one(other)?.into_iter().collect()),
    }
}

/// A label, key or path of a JSON value: a string or a number; blank and null are none.
pub(crate) fn label_of(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty())),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => {
            Err(format!("is {}, wanted a string or a number", name_of(value)))
        }
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// `path` relative to its corpus, `/` between its parts; refused if it leads out.
pub(crate) fn safe_path(path: &str) -> Result<String, Refusal> {
    let unsafe_path = |why: &str| (RejectReason::UnsafePath, format!("`{path}` {why}"));
    if path.contains("://") {
        let detail = format!("`{path}` is no path, and no URL of `http://`, `https://` or `s3://`");
        return Err((RejectReason::MissingFile, detail));
    }
    if path.contains('\0') {
        return Err(unsafe_path("holds a NUL"));
    }
    let path_ = path.replace('\\', "/");
    if path_.starts_with('/') || path_.as_bytes().get(1) == Some(&b':') {
        return Err(unsafe_path("is absolute, wanted a path below the corpus"));
    }
    let parts: Vec<&str> = path_.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(unsafe_path("leads out of the corpus"));
    }
    if parts.is_empty() {
        return Err((RejectReason::MalformedRow, "the path is blank".to_owned()));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_a_shell_does_and_across_slashes() {
        let cases = [
            ("cifar10-train-*", "cifar10-train-000000.tar", true),
            ("cifar10-train-*", "cifar10-test-000000.tar", false),
            ("train/*", "train/0/a.jpg", true),
            ("*.tar", "a.tar.gz", false),
            ("a?c*", "abc", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "xxaxxbxx", false),
            ("", "", true),
        ];
        for (glob, text, want) in cases {
            assert_eq!(matches_glob(glob, text), want, "{glob} {text}");
        }
    }

    #[test]
    fn paths_that_leave_their_corpus_are_refused() {
        for path in ["../a.jpg", "a/../../b", "/etc/passwd", "C:\\x.jpg", "..\\x", "a\0b"] {
            assert_eq!(safe_path(path).unwrap_err().0, RejectReason::UnsafePath, "{path}");
        }
        assert_eq!(safe_path("./a//b.jpg").unwrap(), "a/b.jpg");
        assert_eq!(safe_path("a\\b.jpg").unwrap(), "a/b.jpg");
    }

    #[test]
    fn a_million_captions_of_one_record_take_no_longer_than_a_million_of_many() {
        let lines = |range: std::ops::Range<u32>| range.map(|i| format!("{i}\n")).collect::<String>();
        let mut merged = Merged::default();
        for part in [lines(0..400_000), lines(200_000..600_000), lines(0..10)] {
            merged.add(read_txt(part.as_bytes(), "x").unwrap());
        }
        for i in 0..100_000 {
            merged.add(Wording { captions: vec![format!("more {i}"), "7".to_owned()], labels: Vec::new() });
        }
        let captions = &merged.wording.captions;
        assert_eq!((captions.len(), captions[599_999].as_str()), (700_000, "599999"));
    }

    #[test]
    fn sidecars_give_captions_and_labels() {
        let got = read_json(br#"{"caption":"a","captions":["a","b",null,""],"label":3}"#, "x").unwrap();
        assert_eq!(got, Wording { captions: vec!["a".into(), "b".into()], labels: vec!["3".into()] });
        let several = read_json(br#"{"label":["dog ",7,"",null]}"#, "x").unwrap();
        assert_eq!(several.labels, ["dog", "7"]);
        assert_eq!(read_json(br#"{"labels":["dog","cat"]}"#, "x").unwrap().labels, ["dog", "cat"]);
        assert_eq!(read_json(br#"{"label":[["dog"]]}"#, "x").unwrap_err().0, RejectReason::MalformedRow);
        assert_eq!(read_txt(b"\xef\xbb\xbfone\r\n\r\ntwo", "x").unwrap().captions, ["one", "two"]);
        assert_eq!(read_txt(b"caf\xe9", "x").unwrap_err().0, RejectReason::InvalidText);
        assert_eq!(read_json(b"{\"caption\":", "x").unwrap_err().0, RejectReason::MalformedRow);
        assert_eq!(read_cls(b" 7\n", "x").unwrap().labels, ["7"]);
        assert_eq!(read_cls(b" \n", "x").unwrap(), Wording::default());
    }

    #[test]
    fn a_separator_cuts_labels_and_leaves_blank_parts_out() {
        let mut wording =
            Wording { captions: vec!["a;b".into()], labels: vec!["Dog; Child, kid;;dog ;".into(), ";".into()] };
        wording.split_labels(";");
        assert_eq!(
            wording,
            Wording { captions: vec!["a;b".into()], labels: vec!["Dog".into(), "Child, kid".into(), "dog".into()] }
        );
    }
}
