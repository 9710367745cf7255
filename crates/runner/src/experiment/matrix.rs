//! The matrix of an experiment file, and what its entries change: which methods and checkpoints there are, by name.
//!
//! An axis is `methods.NAME.KEY` (a setting of that method), `sampler.KEY` or `seed` (for every method) or `models.NAME.KEY`. Every
//! method and every checkpoint is multiplied by the axes that concern it, the first axis slowest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_yaml::Value;

use crate::experiment::spec::{Axis, Entry, Matrix, Model, Pairs};
use crate::experiment::yaml::did_you_mean;

/// Something that an experiment names, with what is changed about it.
#[derive(Debug)]
pub(crate) struct Variant<T> {
    /// The method or checkpoint as written.
    pub(crate) of: T,
    /// What its name is followed by, if anything is changed.
    pub(crate) label: Option<String>,
    pub(crate) changes: Vec<Change>,
}

/// One setting with another value.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// Dotted path; `sampler.KEY`, [`SEED`], or a key of the method or of the checkpoint.
    pub(crate) key: String,
    pub(crate) value: Value,
    /// The value as tables show it.
    pub(crate) shown: String,
}

impl Change {
    /// Whether it changes the method itself, and not what is asked of every method.
    pub(crate) fn is_of_method(&self) -> bool {
        !self.key.starts_with("sampler.") && self.key != SEED
    }
}

/// Most variants of one method or checkpoint.
const MOST_VARIANTS: usize = 10_000;

/// The axis of experiments under other seeds.
pub(crate) const SEED: &str = "seed";

/// What columns and names call the changes.
pub(crate) fn shown(changes: &[Change]) -> BTreeMap<String, String> {
    changes.iter().map(|change| (change.key.clone(), change.shown.clone())).collect()
}

/// The checkpoints of an experiment, by the names that they had before the matrix.
pub(crate) fn models(models: BTreeMap<String, Model>, matrix: &Matrix) -> Result<Vec<Variant<(String, Model)>>> {
    let names: Vec<String> = models.keys().cloned().collect();
    let mut axes: Vec<(&str, &str, &Axis)> = Vec::new();
    for (key, axis) in &matrix.0 {
        if let Some((name, key)) = part_of(key, "models") {
            ensure!(names.iter().any(|known| known == name), "matrix.models.{name}: {}", none_of(name, "models", &names));
            axes.push((name, key, axis));
        }
    }
    let mut found = Vec::new();
    for (name, model) in models {
        let plain = Variant { of: (), label: None, changes: Vec::new() };
        let concerned = axes.iter().filter(|(of, ..)| *of == name).map(|(_, key, axis)| ((*key).to_owned(), *axis));
        for Variant { label, changes, .. } in multiply(plain, concerned)? {
            let mut model = model.clone();
            for change in &changes {
                model.set(&change.key, &change.value).with_context(|| format!("matrix.models.{name}.{}", change.key))?;
            }
            found.push(Variant { of: (name.clone(), model), label, changes });
        }
    }
    Ok(found)
}

/// The methods of an experiment. Images that were brought are what they are: only another seed makes others of them.
pub(crate) fn methods<'a>(entries: &'a [Entry], matrix: &Matrix) -> Result<Vec<Variant<&'a Entry>>> {
    let names: Vec<String> = entries.iter().map(|entry| stem(entry.written())).collect();
    let mut axes: Vec<(Option<&str>, String, &Axis)> = Vec::new();
    for (key, axis) in &matrix.0 {
        if let Some((name, key)) = part_of(key, "methods") {
            ensure!(names.iter().any(|known| known == name), "matrix.methods.{name}: {}", none_of(name, "methods", &names));
            let brought = entries.iter().any(|entry| entry.images.is_some() && entry.written() == name);
            ensure!(!brought, "matrix.methods.{name}: expected a method of this program, whose settings can be varied");
            axes.push((Some(name), key.to_owned(), axis));
        } else if key.starts_with("sampler.") || key == SEED {
            axes.push((None, key.clone(), axis));
        } else {
            ensure!(part_of(key, "models").is_some(), "matrix.{key}: {}", not_an_axis(key));
        }
    }
    let mut found = Vec::new();
    for (entry, name) in entries.iter().zip(&names) {
        entry.check().with_context(|| format!("methods: {}", entry.written()))?;
        let changes = changes(entry).with_context(|| format!("methods: {}", entry.written()))?;
        let label = entry.label.clone().or_else(|| label(&changes));
        let concerns = |of: &Option<&str>, key: &str| of.is_none_or(|of| of == name) && (entry.images.is_none() || key == SEED);
        let concerned = axes.iter().filter(|(of, key, _)| concerns(of, key)).map(|(_, key, axis)| (key.clone(), *axis));
        found.extend(multiply(Variant { of: entry, label, changes }, concerned)?);
    }
    Ok(found)
}

/// `NAME.KEY` of `PART.NAME.KEY`.
fn part_of<'a>(key: &'a str, part: &str) -> Option<(&'a str, &'a str)> {
    key.strip_prefix(part)?.strip_prefix('.')?.split_once('.')
}

/// What a method is called in axes: its name, or that of its file.
fn stem(method: &str) -> String {
    match crate::experiment::yaml::is_file_name(method) {
        true => Path::new(method).file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        false => method.to_owned(),
    }
}

fn none_of(name: &str, part: &str, names: &[String]) -> String {
    let hint = did_you_mean(name, names.iter().map(String::as_str));
    format!("expected one of `{part}`: {}{hint}", names.join(", "))
}

fn not_an_axis(key: &str) -> String {
    let expected = "expected methods.NAME.KEY, sampler.KEY, models.NAME.KEY or seed";
    match key {
        "seeds" => format!("{expected}; did you mean `seed`?"),
        "dtype" | "variant" => format!("{expected}; did you mean `models.NAME.{key}`?"),
        "scales" | "scale" | "sizes" | "models" | "methods" => {
            format!("{expected}; several of these are a list of their own, outside `matrix`")
        }
        _ if crate::experiment::keys::SAMPLER_KEYS.contains(&key) => format!("{expected}; did you mean `sampler.{key}`?"),
        _ => {
            let (head, rest) = key.split_once('.').unwrap_or((key, ""));
            let heads = ["methods", "sampler", "models"];
            match heads.into_iter().find(|known| strsim::damerau_levenshtein(known, head) <= 2) {
                Some(known) if !rest.is_empty() && known != head => format!("{expected}; did you mean `{known}.{rest}`?"),
                _ => expected.to_owned(),
            }
        }
    }
}

fn changes(entry: &Entry) -> Result<Vec<Change>> {
    let Pairs(pairs) = &entry.set;
    let change = |(key, value): &(String, Value)| -> Result<Change> {
        let shown = show(value).or_else(|| entry.label.clone());
        let shown = shown.with_context(|| format!("set.{key}: expected a `label` beside `set`, since the value is not a plain one"))?;
        Ok(Change { key: key.clone(), value: value.clone(), shown })
    };
    pairs.iter().map(change).collect()
}

/// A plain value as people write it.
fn show(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("off".to_owned()),
        Value::Bool(value) => Some(value.to_string()),
        // As polars' numbers are shown when they are read back.
        Value::Number(number) => Some(number.as_f64().map_or_else(|| number.to_string(), |number| number.to_string())),
        Value::String(text) => Some(text.clone()),
        Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => None,
    }
}

/// The variant under every combination of the axes' values.
fn multiply<'a, T: Clone>(plain: Variant<T>, axes: impl Iterator<Item = (String, &'a Axis)>) -> Result<Vec<Variant<T>>> {
    let given = (plain.label, plain.changes.len());
    let mut points = vec![plain.changes];
    for (key, axis) in axes {
        ensure!(!axis.0.is_empty(), "matrix: {key}: expected at least one value");
        ensure!(points[0].iter().all(|change| change.key != key), "matrix: {key}: `set` of the method has this key already");
        let mut shown = BTreeSet::new();
        let mut values = Vec::new();
        for (label, value) in &axis.0 {
            let name = label.clone().or_else(|| show(value));
            let name = name.ok_or_else(|| anyhow!("matrix: {key}: expected plain values, or a map from labels to values"))?;
            ensure!(shown.insert(name.clone()), "matrix: {key}: `{name}` stands there twice");
            values.push(Change { key: key.clone(), value: value.clone(), shown: name });
        }
        let with = |point: &Vec<Change>| {
            let point = point.clone();
            values.iter().map(move |value| point.iter().chain([value]).cloned().collect()).collect::<Vec<Vec<Change>>>()
        };
        let n = points.len().saturating_mul(values.len());
        ensure!(n <= MOST_VARIANTS, "matrix: {key}: {n} combinations, expected at most {MOST_VARIANTS}");
        points = points.iter().flat_map(with).collect();
    }
    let variant = |changes: Vec<Change>| {
        let (label_given, n_given) = &given;
        let label = match label_given {
            Some(given) if changes.len() > *n_given => label(&changes[*n_given..]).map(|of_axes| format!("{given},{of_axes}")),
            Some(given) => Some(given.clone()),
            None => label(&changes),
        };
        Variant { of: plain.of.clone(), label, changes }
    };
    Ok(points.into_iter().map(variant).collect())
}

/// `tau=10,progressive=true`: the last part of each key, or all of it where two keys end alike.
fn label(changes: &[Change]) -> Option<String> {
    fn last(key: &str) -> &str {
        key.rsplit('.').next().unwrap_or(key)
    }
    let part = |change: &Change| {
        let alone = changes.iter().filter(|other| last(&other.key) == last(&change.key)).count() == 1;
        format!("{}={}", if alone { last(&change.key) } else { &change.key }, change.shown)
    };
    (!changes.is_empty()).then(|| changes.iter().map(part).collect::<Vec<_>>().join(","))
}

impl Model {
    /// Replaces one key.
    fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        let typed = |what: &str| anyhow!("expected {what}");
        match key {
            "path" => self.path = Some(value.as_str().ok_or_else(|| typed("a path"))?.into()),
            "family" => self.family = Some(value.as_str().ok_or_else(|| typed("a family's name"))?.to_owned()),
            "variant" => self.variant = Some(value.as_str().ok_or_else(|| typed("a name"))?.to_owned()),
            "dtype" => self.dtype = Some(crate::experiment::yaml::from_value(value.clone()).map_err(|message| anyhow!(message))?),
            _ => bail!("expected path, family, variant or dtype{}", did_you_mean(key, ["path", "family", "variant", "dtype"])),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(methods_yaml: &str, matrix: &str) -> Result<Vec<String>, String> {
        let entries: Vec<Entry> = crate::experiment::yaml::from_value(serde_yaml::from_str(methods_yaml).unwrap())?;
        let matrix: Matrix = crate::experiment::yaml::from_value(serde_yaml::from_str(matrix).unwrap())?;
        let found = methods(&entries, &matrix).map_err(|error| format!("{error:#}"))?;
        Ok(found
            .into_iter()
            .map(|variant| format!("{} {}", variant.of.written(), variant.label.unwrap_or_default()).trim().to_owned())
            .collect())
    }

    #[test]
    fn axes_multiply_what_they_concern() {
        let found = names("[direct-inf, redilation]", "{methods.redilation.redilation.tau: [10, 20.5]}").unwrap();
        assert_eq!(found, ["direct-inf", "redilation tau=10", "redilation tau=20.5"]);
        let both = "{sampler.steps: [4, 8], methods.a.redilation.dilation: {mid: {'mid_block.**': 2}, none: {}}}";
        let found = names("[direct-inf, x/a.yaml]", both).unwrap();
        assert_eq!(
            found,
            [
                "direct-inf steps=4",
                "direct-inf steps=8",
                "x/a.yaml steps=4,dilation=mid",
                "x/a.yaml steps=4,dilation=none",
                "x/a.yaml steps=8,dilation=mid",
                "x/a.yaml steps=8,dilation=none"
            ]
        );
        assert_eq!(names("[a, b]", "{seed: [0, 9]}").unwrap(), ["a seed=0", "a seed=9", "b seed=0", "b seed=9"]);
        let entries = "[{method: a, set: {x.tau: 1, y.tau: 2}}, {method: a, label: mine, set: {x: {b: 1}}}, {method: a, set: {z: null}}]";
        assert_eq!(names(entries, "{sampler.eta: [0]}").unwrap(), ["a x.tau=1,y.tau=2,eta=0", "a mine,eta=0", "a z=off,eta=0"]);
    }

    #[test]
    fn what_is_no_axis_is_refused() {
        for (matrix, fragments) in [
            ("{guidance_scale: [1]}", &["matrix.guidance_scale", "did you mean `sampler.guidance_scale`?"][..]),
            ("{smapler.steps: [1]}", &["did you mean `sampler.steps`?"]),
            ("{scales: [1]}", &["outside `matrix`"]),
            ("{seeds: [1]}", &["did you mean `seed`?"]),
            ("{methods.redilatoin.redilation.tau: [1]}", &["matrix.methods.redilatoin", "did you mean `redilation`?"]),
            ("{sampler.steps: []}", &["sampler.steps", "at least one value"]),
            ("{sampler.steps: [1, 1.0]}", &["`1` stands there twice"]),
            ("{methods.redilation.redilation.dilation: [{a: 2}]}", &["redilation.dilation", "a map from labels to values"]),
        ] {
            let message = names("[direct-inf, redilation]", matrix).unwrap_err();
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{matrix}: {message}");
        }
        let message = names("[{method: a, set: {x: {b: 1}}}]", "{}").unwrap_err();
        assert!(message.contains("set.x") && message.contains("label"), "{message}");
    }

    #[test]
    fn checkpoints_are_multiplied_too() {
        let found = |matrix: &str| {
            let written: BTreeMap<String, Model> =
                crate::experiment::yaml::from_value(serde_yaml::from_str("{a: x, b: y}").unwrap()).unwrap();
            models(written, &crate::experiment::yaml::from_value(serde_yaml::from_str(matrix).unwrap()).unwrap())
        };
        let expanded = found("{models.b.dtype: [f32, bf16]}").unwrap();
        let shown: Vec<String> = expanded
            .iter()
            .map(|v| format!("{} {:?} {:?}", v.of.0, v.label, v.of.1.dtype.map(|d| serde_yaml::to_string(&d).unwrap())))
            .collect();
        assert_eq!(shown, ["a None None", "b Some(\"dtype=f32\") Some(\"f32\\n\")", "b Some(\"dtype=bf16\") Some(\"bf16\\n\")"]);
        for (matrix, fragment) in [
            ("{models.c.dtype: [f32]}", "expected one of `models`: a, b"),
            ("{models.a.dtipe: [f32]}", "did you mean `dtype`?"),
            ("{models.a.dtype: [f8]}", "expected one of `f32`"),
        ] {
            let message = format!("{:#}", found(matrix).unwrap_err());
            assert!(message.contains(fragment), "{matrix}: {message}");
        }
    }
}
