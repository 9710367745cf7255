//! `scalebench sweep`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::Sweep;
use crate::store::Store;
use crate::{execute, plan, resolve, spec};

pub(super) fn run(args: &Sweep) -> Result<()> {
    let experiment = spec::read(&args.experiment, &args.set)?;
    let (resolved, inputs) = resolve::resolve(&args.experiment, experiment)?;
    let plan = plan::plan(&resolved, &inputs).with_context(|| args.experiment.display().to_string())?;
    for pipeline in &inputs.pipelines {
        let distinct: std::collections::BTreeSet<&String> = inputs.prompts.iter().collect();
        distinct.into_iter().try_for_each(|prompt| super::warn_of_overflow(pipeline, prompt))?;
    }
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&resolved.name));
    let store = Store::new(&out, args.shard);
    if args.dry_run {
        execute::check_same_experiment(&store, &resolved)?;
        return execute::dry_run(&plan, &inputs, &store, args.shard);
    }
    execute::run(&resolved, &inputs, &plan, &store, args.shard, command(args, &resolved.name))
}

/// The command that makes the same images again, without what belongs to this machine.
fn command(args: &Sweep, name: &str) -> String {
    let experiment = match args.experiment.is_relative() {
        true => args.experiment.display().to_string(),
        false => Path::new(name).with_extension("yaml").display().to_string(),
    };
    let overrides = args.set.iter().map(|text| format!(" --set {text}"));
    format!("scalebench sweep {experiment}{}", overrides.collect::<String>())
}
