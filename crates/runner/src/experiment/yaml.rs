//! Typed data from YAML, and what may have been meant.

use serde::de::DeserializeOwned;
use serde_yaml::Value;

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

/// Whether a method or protocol of this name is looked for in a file.
pub(crate) fn is_file_name(name: &str) -> bool {
    name.ends_with(".yaml") || name.ends_with(".yml") || name.contains('/')
}
