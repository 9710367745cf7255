//! Built-in methods and method files.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use scalebench_generation::{Method, MethodSpec, SiteTable};
use serde_yaml::{Mapping, Value};

use crate::experiment::matrix::Change;
use crate::experiment::yaml::{did_you_mean, from_value, is_file_name};

/// Name of the method that everything is compared with: plain sampling at the larger size.
pub(crate) const BASELINE: &str = "direct-inf";

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        /// Name and YAML of every built-in method, in the order of the tables.
        const BUILTIN: &[(&str, &str)] = &[
            $(($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../experiments/methods/", $name, ".yaml")))),*
        ];
    };
}

builtin![
    "direct-inf",
    "attn-sf",
    "redilation",
    "redilation-disperse",
    "scalecrafter",
    "scalecrafter-disperse",
    "scalecrafter-as-published",
    "self-cascade",
    "megafusion",
    "megafusion-pp",
    "rectified-hr",
    "diffuse-high",
    "frecas",
    "upsample-guidance",
    "multidiffusion",
    "hidiffusion",
    "deep-shrink",
    "demofusion",
    "accdiffusion",
    "fouriscale",
    "freescale",
    "fam",
    "sd-upscale",
    "upscale-bicubic",
    "upscale-lanczos"
];

/// Names of the built-in methods.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}

/// The YAML of a built-in method.
pub(crate) fn text(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(builtin, _)| *builtin == name).map(|(_, text)| *text)
}

/// A built-in method by name, or the method in a YAML file; relative paths start at `folder`.
pub(crate) fn find(name: &str, folder: &Path) -> Result<MethodSpec> {
    if let Some(text) = text(name) {
        let file = format!("experiments/methods/{name}.yaml");
        return Ok(MethodSpec::parse(text, Path::new(&file))?);
    }
    if is_file_name(name) {
        let file = folder.join(name);
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        return Ok(MethodSpec::parse(&text, &file)?);
    }
    let known: Vec<_> = names().collect();
    let hint = did_you_mean(name, known.iter().copied());
    bail!("unknown method `{name}`, expected a path ending in .yaml or one of {}{hint}", known.join(", "))
}

/// A method of an experiment, with what the experiment changes about it.
pub(crate) struct Configured {
    pub(crate) spec: MethodSpec,
    /// The method as it is in its file.
    original: MethodSpec,
    /// Ingredients that the changes speak of, and whether they are taken out.
    ingredients: Vec<(String, bool)>,
}

impl Configured {
    /// The method of a file with other settings; `label` sets it apart. A change of an ingredient's setting applies to every
    /// variant that has the ingredient, a whole ingredient to all variants.
    pub(crate) fn new(original: MethodSpec, label: Option<&str>, changes: &[Change]) -> Result<Configured> {
        let Some(label) = label else { return Ok(Configured { spec: original.clone(), original, ingredients: Vec::new() }) };
        let mut value = serde_yaml::to_value(&original)?;
        value["name"] = format!("{}_{label}", original.name()).into();
        value["title"] = format!("{}, {label}", original.title()).into();
        let mut ingredients = Vec::new();
        for Change { key, value: new, .. } in changes.iter().filter(|change| change.is_of_method()) {
            let (ingredient, rest) = key.split_once('.').map_or((key.as_str(), None), |(ingredient, rest)| (ingredient, Some(rest)));
            ensure!(!["models", "scales"].contains(&ingredient), "{key}: expected a setting of the method, not what it is for");
            let variants = value["variants"].as_sequence_mut().context("expected variants")?;
            let mut present = BTreeSet::new();
            let mut n_changed = 0;
            for variant in variants {
                let variant = variant.as_mapping_mut().context("expected a map")?;
                present.extend(variant.keys().filter_map(|key| key.as_str().map(str::to_owned)));
                match (rest, variant.get_mut(ingredient)) {
                    (Some(rest), Some(there)) => set_at(there, rest, new.clone()).with_context(|| key.clone())?,
                    (Some(_), None) => continue,
                    (None, Some(_)) if new.is_null() => drop(variant.remove(ingredient)),
                    (None, None) if new.is_null() => continue,
                    (None, _) => drop(variant.insert(ingredient.into(), new.clone())),
                }
                n_changed += 1;
            }
            if n_changed == 0 {
                let hint = did_you_mean(ingredient, present.iter().map(String::as_str));
                bail!("{key}: no variant of {} has `{ingredient}`{hint}", original.name());
            }
            ingredients.push((ingredient.to_owned(), rest.is_none() && new.is_null()));
        }
        let spec = from_value(value).map_err(|message| anyhow!("{} with {label}: {message}", original.name()))?;
        Ok(Configured { spec, original, ingredients })
    }

    /// The method for a model and scale. A change that says nothing about them is an error: the cell would be another one's copy.
    pub(crate) fn resolve(&self, family: &str, scale: f64, sites: &SiteTable) -> Result<Method> {
        let method = self.spec.resolve(family, scale, sites)?;
        if !self.ingredients.is_empty() {
            let settings = |method: &Method| serde_yaml::to_value(method);
            let (now, before) = (settings(&method)?, settings(&self.original.resolve(family, scale, sites)?)?);
            for (ingredient, is_taken_out) in &self.ingredients {
                let has_effect = if *is_taken_out { before.get(ingredient) } else { now.get(ingredient) }.is_some();
                ensure!(
                    has_effect,
                    "{}: `{ingredient}` is not used for {family} at {scale}×, expected a change with an effect",
                    self.spec.name()
                );
            }
        }
        Ok(method)
    }
}

/// Replaces the value at a dotted path.
fn set_at(at: &mut Value, path: &str, new: Value) -> Result<()> {
    let (part, rest) = path.split_once('.').map_or((path, None), |(part, rest)| (part, Some(rest)));
    let map = at.as_mapping_mut().with_context(|| format!("`{part}` lies inside a plain value"))?;
    match rest {
        None => drop(map.insert(part.into(), new)),
        Some(rest) => set_at(map.entry(part.into()).or_insert_with(|| Value::Mapping(Mapping::new())), rest, new)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_parses_under_its_own_name() {
        for name in names() {
            assert_eq!(find(name, Path::new("")).unwrap().name(), name);
        }
    }

    fn configured(name: &str, changes: &str) -> Result<Configured> {
        let changes: std::collections::BTreeMap<String, Value> = serde_yaml::from_str(changes).unwrap();
        let changes: Vec<Change> = changes.into_iter().map(|(key, value)| Change { key, value, shown: String::new() }).collect();
        Configured::new(find(name, Path::new(""))?, Some("x"), &changes)
    }

    #[test]
    fn changes_reach_the_settings_and_only_them() {
        let configured = configured("redilation-disperse", "{redilation.tau: 12, dispersion.transform.eta: 0.5}").unwrap();
        let (now, before) = (serde_yaml::to_value(&configured.spec).unwrap(), serde_yaml::to_value(&configured.original).unwrap());
        assert_eq!((configured.spec.name(), configured.spec.title()), ("redilation-disperse_x", "Re-dilation + dispersion, x"));
        let mut restored = now.clone();
        (restored["name"], restored["title"]) = (before["name"].clone(), before["title"].clone());
        for (variant, old) in restored["variants"].as_sequence_mut().unwrap().iter_mut().zip(before["variants"].as_sequence().unwrap()) {
            assert_eq!(variant["redilation"]["tau"], Value::from(12.0));
            variant["redilation"]["tau"] = old["redilation"]["tau"].clone();
            assert_eq!(variant.get("dispersion").is_some(), old.get("dispersion").is_some());
            if let Some(dispersion) = variant.get_mut("dispersion") {
                assert_eq!(dispersion["transform"]["eta"], Value::from(0.5));
                dispersion["transform"]["eta"] = Value::from(0.05);
            }
        }
        assert_eq!(restored, before);
        let off = self::configured("scalecrafter", "{noise_damped_guidance: null, freeu: {trigger: blocks, b1: 1.1, b2: 1, s1: 1, s2: 1}}")
            .unwrap();
        let off = serde_yaml::to_value(&off.spec).unwrap();
        let variants = off["variants"].as_sequence().unwrap();
        assert!(variants.iter().all(|variant| variant.get("noise_damped_guidance").is_none() && variant.get("freeu").is_some()));
    }

    #[test]
    fn changes_of_nothing_are_refused() {
        for (name, changes, fragments) in [
            ("redilation", "{redilation.taw: 1}", &["unknown field `taw`", "did you mean `tau`?"][..]),
            ("redilation", "{redilaton.tau: 1}", &["no variant of redilation has `redilaton`", "did you mean `redilation`?"]),
            ("redilation", "{freeu: null}", &["no variant of redilation has `freeu`"]),
            ("redilation", "{redilation.tau.x: 1}", &["redilation.tau.x", "inside a plain value"]),
            ("redilation", "{redilation.tau: many}", &["redilation.tau", "many"]),
            ("redilation", "{scales: [4]}", &["scales: expected a setting"]),
        ] {
            let message = configured(name, changes).err().map(|error| format!("{error:#}")).unwrap();
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{changes}: {message}");
        }
    }

    #[test]
    fn unknown_names_get_a_suggestion() {
        let message = find("scalecrafer", Path::new("")).unwrap_err().to_string();
        assert!(message.contains("did you mean `scalecrafter`?"), "{message}");
    }
}
