//! `scalebench grid`

use anyhow::{Context, Result, ensure};

use crate::cli::Grid;
use crate::experiment::resolved::{Method, Resolved, Scale};
use crate::experiment::yaml::did_you_mean;
use crate::report::blind::{QUESTION, Study};
use crate::report::folder;
use crate::run::file::RunFile;
use crate::run::png;
use crate::run::shard::Shard;
use crate::run::store::{Store, write_file};

pub(super) fn run(args: &Grid) -> Result<()> {
    let store = Store::new(&args.dir, Shard::WHOLE);
    let run = RunFile::read(&store)?;
    let resolved = &run.experiment;
    let names: Vec<&str> = resolved.models.iter().map(|model| model.name.as_str()).collect();
    let wanted = args.model.as_deref().unwrap_or(names[0]);
    let model = resolved.models.iter().find(|model| model.name == wanted);
    let model = model.with_context(|| format!("--model {wanted}: expected one of {}", names.join(", ")))?;
    let scale = scale(resolved, args.scale.as_deref()).context("--scale")?;
    let Some(methods) = &args.blind else {
        let (_, image) = folder::sample(&store, resolved, model, scale, resolved.seed)?;
        return write_file(&args.out, &png::encode(&image, None)?);
    };
    let [a, b] = &methods[..] else { anyhow::bail!("--blind: expected two methods, as in --blind scalecrafter,sd-upscale") };
    ensure!(a != b, "--blind: expected two different methods");
    let methods = [method(resolved, a)?, method(resolved, b)?];
    let question = args.question.as_deref().unwrap_or(QUESTION);
    let study = Study { store: &store, resolved, model, scale, methods, images: args.images, seed: args.seed, question };
    let (page, key) = study.make()?;
    let key_file = args.key.clone().unwrap_or_else(|| args.out.with_extension("key.json"));
    ensure!(key_file != args.out, "--key: expected another file than --out");
    write_file(&key_file, &serde_json::to_vec_pretty(&key)?)?;
    write_file(&args.out, page.as_bytes())?;
    eprintln!("{} pairs; keep {}, which says whose image is on which side", key.pairs.len(), key_file.display());
    Ok(())
}

/// A scale by its label or factor; without a choice the only one.
fn scale<'a>(resolved: &'a Resolved, wanted: Option<&str>) -> Result<&'a Scale> {
    let labels = || resolved.scales.iter().map(Scale::label).collect::<Vec<_>>().join(", ");
    let fits = |scale: &&Scale| wanted.is_none_or(|wanted| scale.label() == wanted || format!("{}", scale.factor) == wanted);
    let mut found = resolved.scales.iter().filter(fits);
    let first = found.next().with_context(|| format!("{}: expected one of {}", wanted.unwrap_or_default(), labels()))?;
    ensure!(found.next().is_none(), "expected one of {}", labels());
    Ok(first)
}

fn method<'a>(resolved: &'a Resolved, name: &str) -> Result<&'a Method> {
    let names = || resolved.methods.iter().map(|method| method.name.as_str());
    resolved.methods.iter().find(|method| method.name == name).with_context(|| {
        let all = names().collect::<Vec<_>>().join(", ");
        format!("--blind: the run has no method `{name}`, expected two of {all}{}", did_you_mean(name, names()))
    })
}
