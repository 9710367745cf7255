//! What a run's results were made with, as HTML.

use anyhow::Result;
use maud::{Markup, html};

use crate::experiment::resolved::{Model, Prompts, Reference, Resolved};
use crate::run::file::RunFile;

/// A table of facts, and the experiment itself.
pub(crate) fn section(run: &RunFile) -> Result<Markup> {
    let facts = facts(run)?;
    let yaml = serde_yaml::to_string(&run.experiment)?;
    Ok(html! {
        table.facts {
            caption.hidden { "What the results were made with" }
            tbody { @for (name, value) in &facts { tr { th scope="row" { (name) } td { (value) } } } }
        }
        details {
            summary { "The experiment as it ran, with every setting" }
            pre tabindex="0" { (yaml) }
        }
    })
}

fn facts(run: &RunFile) -> Result<Vec<(String, String)>> {
    let resolved = &run.experiment;
    let mut facts: Vec<(String, String)> = Vec::new();
    let mut fact = |name: &str, value: String| facts.push((name.to_owned(), value));
    fact("Command", run.command.clone());
    fact("Version", resolved.tool.clone());
    fact("Machine", run.machine.as_ref().map_or_else(|| "not recorded".to_owned(), ToString::to_string));
    resolved.models.iter().for_each(|model| fact(&format!("Checkpoint {}", model.name), checkpoint(model)));
    let protocol = &resolved.metrics.protocol;
    fact("Protocol", format!("{}: {}", protocol.name, protocol.source));
    for network in &resolved.metrics.networks {
        fact("Feature network", format!("{}: {}, {}", network.path.display(), network.features, network.digest));
    }
    fact("Prompts", prompts(resolved));
    fact("Reference", reference(resolved));
    fact("Images and seeds", seeds(resolved));
    fact("Sampler", settings(&serde_yaml::to_value(&resolved.sampler)?));
    let methods: Vec<String> = resolved.methods.iter().map(|method| format!("{} ({})", method.title, method.name)).collect();
    fact("Methods", methods.join(", "));
    Ok(facts)
}

fn checkpoint(model: &Model) -> String {
    let variant = model.variant.as_ref().map_or_else(String::new, |variant| format!(", variant {variant}"));
    format!(
        "{}{variant}, family {}, weights as {}, trained at {}×{} px, BLAKE3 {}",
        model.path.display(),
        model.family,
        plain(&model.dtype),
        model.width,
        model.height,
        model.digest
    )
}

fn prompts(resolved: &Resolved) -> String {
    match &resolved.prompts {
        Prompts::Emoji { seed } if resolved.video.is_some() => {
            format!("names of the embedded emoji set and what they do, in an order keyed by seed {seed}")
        }
        Prompts::Emoji { seed } => format!("names of the embedded emoji set, in an order keyed by seed {seed}"),
        Prompts::File { path, column, seed, digest } => {
            let column = column.as_ref().map_or_else(String::new, |column| format!("column {column} of "));
            let seed = seed.map_or_else(String::new, |seed| format!(", one caption an image, chosen by seed {seed}"));
            format!("{column}{}{seed}, {digest}", path.display())
        }
    }
}

fn reference(resolved: &Resolved) -> String {
    match &resolved.reference {
        Reference::Emoji { images, seed } if resolved.video.is_some() => {
            format!("{images} videos of the embedded emoji set, rendered as their captions say, order keyed by seed {seed}")
        }
        Reference::Emoji { images, seed } => format!("{images} renders of the embedded emoji set, order keyed by seed {seed}"),
        Reference::Folder { path, images, digest }
        | Reference::Shards { path, images, digest }
        | Reference::Parquet { path, images, digest, .. } => {
            format!("{}, {images} images, {digest}", path.display())
        }
        Reference::Statistics { path, images, provenance, stated, digest } => {
            let n = images.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string());
            let says = if *stated { "made with" } else { "taken to be made with" };
            let (network, preprocess) = (&provenance.extractor, provenance.preprocess.id());
            format!("{}, statistics of {n} images, {says} {network} and {preprocess}, {digest}", path.display())
        }
    }
}

fn seeds(resolved: &Resolved) -> String {
    let seeds = match resolved.sampler.seed_once_per_batch_of {
        None => format!("image i is made with seed {} + i, the same in every cell", resolved.seed),
        Some(batch) => format!("every batch of {batch} begins with seed {}", resolved.seed),
    };
    let own: Vec<String> = resolved.methods.iter().filter_map(|m| Some(format!("; {}: {}", m.name, m.seed?))).collect();
    format!("{}; {seeds}{}", resolved.images_in_words(" a cell"), own.concat())
}

/// A value as a YAML file has it.
fn plain(value: &impl serde::Serialize) -> String {
    serde_yaml::to_string(value).unwrap_or_default().trim().to_owned()
}

/// `name: ddim, steps: 50`: what is set, in the order of the experiment file.
fn settings(value: &serde_yaml::Value) -> String {
    let Some(map) = value.as_mapping() else { return String::new() };
    let set = map.iter().filter(|(_, value)| !value.is_null());
    set.map(|(key, value)| format!("{}: {}", plain(key), plain(value))).collect::<Vec<_>>().join(", ")
}
