//! The JSON configurations of a diffusers folder.
//!
//! Values that change what a network computes are either implemented or refused by name; nothing is
//! skipped silently.

use crate::error::{Error, Result, read};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The largest size or width that a configuration may hold: far above any network, far below an overflow.
pub(crate) const LARGEST: usize = 1 << 20;

/// One configuration file, keys ticked off as they are read.
pub(crate) struct Config {
    file: PathBuf,
    map: Map<String, Value>,
    seen: Vec<String>,
}

impl Config {
    pub(crate) fn open(file: &Path) -> Result<Self> {
        let value = serde_json::from_slice(&read(file)?).map_err(|e| Error::malformed(file, format!("expected JSON: {e}")))?;
        Self::of(value, file)
    }

    /// What `file` holds, or would hold.
    pub(crate) fn of(value: Value, file: &Path) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { file: file.to_owned(), map, seen: Vec::new() }),
            _ => Err(Error::malformed(file, "expected a JSON object")),
        }
    }

    /// Where it was read.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// All of it.
    pub(crate) fn value(&self) -> Value {
        Value::Object(self.map.clone())
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.map.get(key).map_or("missing".to_owned(), Value::to_string);
        Error::Config { file: self.file.clone(), key: key.to_owned(), found, expected: expected.to_owned() }
    }

    fn find(&mut self, key: &str) -> Option<&Value> {
        self.seen.push(key.to_owned());
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The error that `key` is not what is `expected`, or does not go with other keys.
    pub(crate) fn refuse<T>(&self, key: &str, expected: impl AsRef<str>) -> Result<T> {
        Err(self.wrong(key, expected.as_ref()))
    }

    /// A whole number from `low` to `high`.
    pub(crate) fn within(&mut self, key: &str, default: Option<usize>, low: usize, high: usize) -> Result<usize> {
        let found = match self.find(key) {
            None => default,
            Some(v) => v.as_u64().and_then(|v| usize::try_from(v).ok()),
        };
        found.filter(|n| (low..=high).contains(n)).ok_or_else(|| self.wrong(key, &format!("an integer from {low} to {high}")))
    }

    /// A size, width or number of things, of which there is at least one.
    pub(crate) fn count(&mut self, key: &str, default: Option<usize>) -> Result<usize> {
        self.within(key, default, 1, LARGEST)
    }

    /// A number of layers.
    pub(crate) fn layers(&mut self, key: &str, default: Option<usize>) -> Result<usize> {
        self.within(key, default, 1, 256)
    }

    pub(crate) fn f64(&mut self, key: &str, default: f64) -> Result<f64> {
        match self.find(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    /// A number above zero, at most `most`.
    pub(crate) fn positive(&mut self, key: &str, default: f64, most: f64) -> Result<f64> {
        let found = self.f64(key, default)?;
        if found > 0.0 && found <= most { Ok(found) } else { self.refuse(key, format!("a number above 0, at most {most}")) }
    }

    pub(crate) fn bool(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.find(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// A list of `n` booleans, or one boolean that stands for all of them; without either, false.
    pub(crate) fn bools(&mut self, key: &str, n: usize) -> Result<Vec<bool>> {
        let list = match self.find(key) {
            None => Some(vec![false; n]),
            Some(Value::Array(list)) => list.iter().map(Value::as_bool).collect(),
            Some(v) => v.as_bool().map(|v| vec![v; n]),
        };
        list.filter(|list| list.len() == n).ok_or_else(|| self.wrong(key, &format!("true, false, or a list of {n} of them")))
    }

    pub(crate) fn string(&mut self, key: &str, default: &str) -> Result<String> {
        match self.find(key) {
            None => Ok(default.to_owned()),
            Some(v) => v.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, "a string")),
        }
    }

    pub(crate) fn strings(&mut self, key: &str) -> Result<Vec<String>> {
        let list = self
            .find(key)
            .and_then(Value::as_array)
            .map(|list| list.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
        list.flatten().ok_or_else(|| self.wrong(key, "a list of strings"))
    }

    /// A list of `n` counts, or one count that stands for all of them.
    pub(crate) fn counts(&mut self, key: &str, n: Option<usize>, default: Option<usize>) -> Result<Vec<usize>> {
        let range = format!("from 1 to {LARGEST}");
        let expected =
            n.map_or_else(|| format!("a list of integers {range}"), |n| format!("an integer or a list of {n} integers, {range}"));
        let one = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=LARGEST).contains(v));
        let list = match (self.find(key), n) {
            (Some(Value::Array(list)), _) => list.iter().map(one).collect(),
            (Some(v), Some(n)) => one(v).map(|v| vec![v; n]),
            (None, Some(n)) => default.map(|v| vec![v; n]),
            _ => None,
        };
        list.filter(|list| n.is_none_or(|n| list.len() == n)).ok_or_else(|| self.wrong(key, &expected))
    }

    /// Channels of each level: at least one, at most eight of them, each a multiple of the norms' `groups`.
    pub(crate) fn channels(&mut self, key: &str, groups: usize) -> Result<Vec<usize>> {
        let channels = self.counts(key, None, None)?;
        if !(1..=8).contains(&channels.len()) || channels.iter().any(|c| !c.is_multiple_of(groups)) {
            return self.refuse(key, format!("one to eight multiples of `norm_num_groups`, {groups}"));
        }
        Ok(channels)
    }

    /// Errors unless `key` is absent, null, or one of `allowed`.
    pub(crate) fn only(&mut self, key: &str, allowed: &[Value]) -> Result<()> {
        match self.find(key) {
            None => Ok(()),
            Some(v) if allowed.contains(v) => Ok(()),
            Some(_) => {
                let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
                Err(self.wrong(key, &list.join(" or ")))
            }
        }
    }

    /// Marks keys that do not change inference.
    pub(crate) fn ignore(&mut self, keys: &[&str]) {
        self.seen.extend(keys.iter().map(|k| (*k).to_owned()));
    }

    /// Errors on the first key that nobody has asked for, unless it is empty, false or private.
    pub(crate) fn finish(self) -> Result<()> {
        let unknown = self.map.iter().find(|(key, value)| {
            let empty = value.is_null() || **value == Value::Bool(false);
            !key.starts_with('_') && !empty && !self.seen.contains(key)
        });
        match unknown {
            None => Ok(()),
            Some((key, _)) => Err(self.wrong(key, "a key that this program knows")),
        }
    }
}
