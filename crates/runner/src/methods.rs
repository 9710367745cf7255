//! Built-in methods and method files.

use std::path::Path;

use anyhow::{Context, Result, bail};
use scalebench_generation::MethodSpec;

use crate::spec::did_you_mean;

/// Name of the method that everything is compared with: plain sampling at the larger size.
pub(crate) const BASELINE: &str = "direct-inf";

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        /// Name and YAML of every built-in method, in the order of the tables.
        const BUILTIN: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../../experiments/methods/", $name, ".yaml")))),*
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
    "scalecrafter-as-published"
];

/// Names of the built-in methods.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    BUILTIN.iter().map(|(name, _)| *name)
}

/// A built-in method by name, or the method in a YAML file; relative paths start at `folder`.
pub(crate) fn find(name: &str, folder: &Path) -> Result<MethodSpec> {
    if let Some((_, text)) = BUILTIN.iter().find(|(builtin, _)| *builtin == name) {
        let file = format!("experiments/methods/{name}.yaml");
        return Ok(MethodSpec::parse(text, Path::new(&file))?);
    }
    if name.ends_with(".yaml") || name.ends_with(".yml") || name.contains('/') {
        let file = folder.join(name);
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        return Ok(MethodSpec::parse(&text, &file)?);
    }
    let known: Vec<_> = names().collect();
    let hint = did_you_mean(name, known.iter().copied());
    bail!("unknown method `{name}`, expected a path ending in .yaml or one of {}{hint}", known.join(", "))
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

    #[test]
    fn unknown_names_get_a_suggestion() {
        let message = find("scalecrafer", Path::new("")).unwrap_err().to_string();
        assert!(message.contains("did you mean `scalecrafter`?"), "{message}");
    }
}
