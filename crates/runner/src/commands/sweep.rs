//! `scalebench sweep`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::Sweep;
use crate::plan::Plan;
use crate::resolve::{Inputs, Resolved};
use crate::store::Store;
use crate::{cost, execute, plan, resolve, spec};

pub(super) fn run(args: &Sweep) -> Result<()> {
    prepare(args)?.run(args)
}

/// An experiment that was read, loaded, checked and planned.
pub(super) struct Prepared {
    pub(super) resolved: Resolved,
    inputs: Inputs,
    plan: Plan,
}

pub(super) fn prepare(args: &Sweep) -> Result<Prepared> {
    let experiment = spec::read(&args.experiment, &args.set)?;
    let (resolved, inputs) = resolve::resolve(&args.experiment, experiment)?;
    let plan = plan::plan(&resolved, &inputs).with_context(|| args.experiment.display().to_string())?;
    for pipeline in &inputs.pipelines {
        let distinct: BTreeSet<&String> = inputs.prompts.iter().collect();
        distinct.into_iter().try_for_each(|prompt| super::warn_of_overflow(pipeline, prompt))?;
    }
    Ok(Prepared { resolved, inputs, plan })
}

impl Prepared {
    /// Times the images of a cell once more; see [`execute::time_again`].
    pub(super) fn time_again(&self, cell: &str, store: &Store) -> Result<()> {
        let cell = self.plan.cells.iter().find(|known| known.name == cell).context("expected a cell of this experiment")?;
        execute::time_again(&self.inputs, cell, store)
    }

    pub(super) fn run(&self, args: &Sweep) -> Result<()> {
        let Prepared { resolved, inputs, plan } = self;
        let out = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&resolved.name));
        let store = Store::new(&out, args.shard);
        execute::check_same_experiment(&store, resolved)?;
        warn_of_counts(resolved, plan);
        if args.dry_run {
            let cost = cost::estimate(resolved, plan, inputs, &store, args.shard)?;
            match args.json {
                true => println!("{}", serde_json::to_string(&cost)?),
                false => print!("{}", cost.text()),
            }
            return Ok(());
        }
        execute::run(resolved, inputs, plan, &store, args.shard, command(args, &resolved.name))
    }
}

/// Says on stderr where a cell has fewer images than the protocol's source: FID depends on their number.
fn warn_of_counts(resolved: &Resolved, plan: &Plan) {
    let protocol = &resolved.metrics.protocol;
    let counts = plan.cells.iter().filter(|cell| cell.asked_for).filter_map(|cell| {
        let n = protocol.images_at(cell.width, cell.height)?;
        (n != resolved.images).then_some((cell.width, cell.height, n))
    });
    let counts: BTreeSet<(u32, u32, usize)> = counts.collect();
    if !counts.is_empty() {
        let sizes: Vec<String> = counts.into_iter().map(|(width, height, n)| format!("{n} at {width}x{height}")).collect();
        let n = resolved.images;
        eprintln!(
            "note: {n} images a cell; protocol {} was published with {}: FIDs do not compare, KIDs do",
            protocol.name,
            sizes.join(", ")
        );
    }
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
