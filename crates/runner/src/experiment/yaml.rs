//! Typed data from YAML, and what may have been meant.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde_yaml::value::{Tag, TaggedValue};
use serde_yaml::{Mapping, Value};

/// Values of a document, what its aliases stand for counted as often as they stand there.
const MOST_VALUES: usize = 1_000_000;

/// A document as data. Aliases may make a page of text a list of billions: that is an error.
pub(crate) fn read(text: &[u8]) -> Result<Value, serde_yaml::Error> {
    VALUES.set(0);
    serde_yaml::from_slice::<Counted>(text).map(|Counted(value)| value)
}

thread_local!(
    /// Values of the document that this thread reads.
    static VALUES: Cell<usize> = const { Cell::new(0) }
);

/// A value that is counted when it is read.
struct Counted(Value);

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let n = VALUES.get() + 1;
        VALUES.set(n);
        if n > MOST_VALUES {
            return Err(de::Error::custom(format!("more than {MOST_VALUES} values")));
        }
        deserializer.deserialize_any(CountedVisitor).map(Counted)
    }
}

struct CountedVisitor;

impl<'de> Visitor<'de> for CountedVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value, a list or a map")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Counted::deserialize(deserializer).map(|Counted(value)| value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Counted(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Sequence(values))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (tag, value) = tagged.variant::<String>()?;
        if tag.is_empty() {
            return Err(de::Error::custom("a tag without a name"));
        }
        let Counted(value) = value.newtype_variant()?;
        Ok(Value::Tagged(Box::new(TaggedValue { tag: Tag::new(tag), value })))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Mapping::new();
        while let Some((Counted(key), Counted(value))) = map.next_entry()? {
            let shown = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
            if values.insert(key, value).is_some() {
                return Err(de::Error::custom(format!("duplicate entry with key {shown:?}")));
            }
        }
        Ok(Value::Mapping(values))
    }
}

/// Typed data from YAML; the error names the key, what was expected, and what may have been meant.
pub(crate) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        let hint = suggestion(&message);
        // serde names the innermost key only; the dot stands for the whole file.
        if path == "." { format!("{message}{hint}") } else { format!("{path}: {message}{hint}") }
    })
}

/// `; did you mean …?` for serde's messages on unknown fields and variants.
fn suggestion(message: &str) -> String {
    if !message.starts_with("unknown ") {
        return String::new();
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let Some(found) = names.next() else { return String::new() };
    did_you_mean(found, names)
}

/// `; did you mean …?` if one of the candidates is close to `found`, else nothing.
pub(crate) fn did_you_mean<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    let close = candidates
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(found, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .min_by_key(|(distance, _)| *distance);
    close.map_or_else(String::new, |(_, name)| format!("; did you mean `{name}`?"))
}

/// Refuses a name that is none of `names`: `no column `captoin`, expected one of id, caption; did you mean `caption`?`.
pub(crate) fn ensure_one_of(what: &str, found: &str, names: &[impl AsRef<str>]) -> anyhow::Result<()> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let hint = || did_you_mean(found, names.iter().copied());
    anyhow::ensure!(names.contains(&found), "no {what} `{found}`, expected one of {}{}", names.join(", "), hint());
    Ok(())
}

/// Whether a method or protocol of this name is looked for in a file.
pub(crate) fn is_file_name(name: &str) -> bool {
    name.ends_with(".yaml") || name.ends_with(".yml") || name.contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read_as_the_library_reads_them() {
        let text = "a: [1, -2, 0.5, .inf, yes, true, null, ~, x]\nb: {4: c, 0.5: d, e: {f: []}}\ng: &g [h]\ni: [*g, *g]\nj: 18446744073709551615\nk: !shrink 2.5\nl: !x {y: z}\n";
        assert_eq!(read(text.as_bytes()).unwrap(), serde_yaml::from_str::<Value>(text).unwrap());
        assert_eq!(read(b"").unwrap(), Value::Null);
        for wrong in ["a: [", "a: 1\na: 2", "a: *b"] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let bomb: String = (1..9).map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "))).collect();
        let message = read(format!("a0: &a0 x\n{bomb}").as_bytes()).unwrap_err().to_string();
        assert!(message.contains("more than") || message.contains("repetition"), "{message}");
    }
}
