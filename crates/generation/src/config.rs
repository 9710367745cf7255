//! The JSON configurations of a diffusers folder.
//!
//! Values that change what a network computes are either implemented or refused by name; nothing is
//! skipped silently.

use crate::error::{Error, Result, read};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

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

    pub(crate) fn usize(&mut self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.find(key) {
            None => default.ok_or_else(|| self.wrong(key, "a positive integer")),
            Some(v) => v.as_u64().map(|v| v as usize).ok_or_else(|| self.wrong(key, "a positive integer")),
        }
    }

    pub(crate) fn f64(&mut self, key: &str, default: f64) -> Result<f64> {
        match self.find(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    pub(crate) fn bool(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.find(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
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

    /// A list of `n` integers, or one integer that stands for all of them.
    pub(crate) fn usizes(&mut self, key: &str, n: Option<usize>, default: Option<usize>) -> Result<Vec<usize>> {
        let expected = n.map_or("a list of integers".to_owned(), |n| format!("an integer or a list of {n} integers"));
        let one = |v: &Value| v.as_u64().map(|v| v as usize);
        let list = match (self.find(key), n) {
            (Some(Value::Array(list)), _) => list.iter().map(one).collect(),
            (Some(v), Some(n)) => one(v).map(|v| vec![v; n]),
            (None, Some(n)) => default.map(|v| vec![v; n]),
            _ => None,
        };
        list.filter(|list| n.is_none_or(|n| list.len() == n)).ok_or_else(|| self.wrong(key, &expected))
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
