//! The JSON Schema of experiment files, for editors: made from the types that read them.
//!
//! It is looser than the program where keys may come from a base, and where a rule spans several keys.

use schemars::SchemaGenerator;
use serde_json::{Value, json};

use crate::experiment::spec::Experiment;

/// The whole schema.
pub(crate) fn experiment() -> Value {
    let mut schema = SchemaGenerator::default().into_root_schema_for::<Experiment>().to_value();
    schema["title"] = "scalebench experiment".into();
    schema["properties"]["base"] = json!({
        "description": "Another experiment file, relative to this one: its maps are merged with this file's key by key, the rest is replaced.",
        "type": "string"
    });
    // A checkpoint and a method may be their path or name alone; a family's checkpoint has a path of its own.
    let short = |types: Value, name: &str| json!({ "anyOf": [{ "type": types }, { "$ref": format!("#/$defs/{name}") }] });
    schema["properties"]["models"]["additionalProperties"] = short(json!(["string", "null"]), "Model");
    schema["properties"]["methods"]["items"] = short(json!("string"), "Entry");
    // What a base has need not be said again.
    let required = schema.as_object_mut().and_then(|map| map.remove("required")).unwrap_or_default();
    schema["anyOf"] = json!([{ "required": ["base"] }, { "required": required }]);
    if let Some(metrics) = schema["$defs"]["Metrics"].as_object_mut() {
        metrics.remove("required");
    }
    schema
}

/// Writes the schema to stdout.
pub(crate) fn print() -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(&experiment())?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn experiments() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments")
    }

    fn problems(schema: &jsonschema::Validator, text: &str) -> Vec<String> {
        schema.iter_errors(&serde_yaml::from_str(text).unwrap()).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let committed = std::fs::read_to_string(experiments().join("schema.json")).unwrap();
        let expected = format!("{}\n", serde_json::to_string_pretty(&experiment()).unwrap());
        assert!(committed == expected, "run `scalebench schema > experiments/schema.json`");
    }

    #[test]
    fn shipped_files_are_valid_and_name_their_schema() {
        let schema = jsonschema::validator_for(&experiment()).unwrap();
        let mut n_files = 0;
        for (folder, line) in [("", "schema.json"), ("ablations", "../schema.json")] {
            for entry in std::fs::read_dir(experiments().join(folder)).unwrap() {
                let file = entry.unwrap().path();
                if file.extension().is_some_and(|extension| extension == "yaml") {
                    let text = std::fs::read_to_string(&file).unwrap();
                    assert_eq!(text.lines().next(), Some(format!("# yaml-language-server: $schema={line}").as_str()), "{}", file.display());
                    assert_eq!(problems(&schema, &text), [""; 0], "{}", file.display());
                    n_files += 1;
                }
            }
        }
        assert!(n_files >= 16, "{n_files}");
    }

    #[test]
    fn mistakes_are_marked() {
        let schema = jsonschema::validator_for(&experiment()).unwrap();
        let plain = std::fs::read_to_string(experiments().join("quick.yaml")).unwrap();
        for (from, to) in [
            ("images: 12", "imges: 12"),
            ("images: 12", "images: 2"),
            ("images: 12", ""),
            ("name: dpm++2m", "name: dmp++2m"),
            ("steps: 10", "stps: 10"),
            ("source: emoji, images", "source: emojy, images"),
            ("scales: [4, 16]", "scales: [{factor: 4, widht: 2, height: 2}]"),
            ("methods: [direct-inf", "methods: [{metod: x}, direct-inf"),
            ("methods: [direct-inf", "methods: [{method: x, set: {sampler.stps: 1}}, direct-inf"),
            ("seed: 0\nsampler", "seed: 0\nmatrix: {sampler.stps: [1]}\nsampler"),
            ("seed: 0\nsampler", "seed: 0\nmatrix: {sampler.steps: []}\nsampler"),
            ("seed: 0\nsampler", "seed: 0\nmatrix: {seeds: [1]}\nsampler"),
            ("{source: emoji, seed: 0}", "{csv: a.csv, column: caption}"),
            ("{path: ../datasets/pocket}", "{path: ../datasets/pocket, dtype: f8}"),
        ] {
            let wrong = plain.replace(from, to);
            assert_ne!(wrong, plain, "{from}");
            assert!(!problems(&schema, &wrong).is_empty(), "{to}");
        }
        assert_eq!(problems(&schema, "{base: quick.yaml, metrics: {clip: x}, matrix: {sampler.steps: [1, 2], seed: [3]}}"), [""; 0]);
        let others = plain.replace("{source: emoji, seed: 0}", "{file: a.csv, column: caption}");
        assert_eq!(problems(&schema, &others.replace("{source: emoji, images: 512}", "{statistics: a.npz}")), [""; 0]);
    }
}
