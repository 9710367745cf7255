//! `scalebench sweep`

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scalebench_generation::Dtype;

use super::workers;
use crate::cli::Sweep;
use crate::cost::estimate;
use crate::experiment::plan::{self, Plan};
use crate::experiment::resolve::{self, Inputs, Needs};
use crate::experiment::resolved::Resolved;
use crate::experiment::spec;
use crate::host::device::{self, Devices};
use crate::host::interrupt;
use crate::report::{folder, tables};
use crate::run::progress::{self, Event};
use crate::run::shard::Shard;
use crate::run::store::Store;
use crate::run::{file, images, lock, schedule, score, seal};

pub(super) fn run(args: &Sweep) -> Result<()> {
    progress::log_as(args.log);
    interrupt::listen()?;
    make_on_all_devices(args)?;
    device::open(args.on.device.first())?;
    let needs = if args.dry_run { Needs::Nothing } else { Needs::All };
    prepare_with(&args.experiment, &args.set, args.dtype, needs)?.run(args)
}

/// With several devices, makes the images, which a sweep on one of them then finds.
pub(super) fn make_on_all_devices(args: &Sweep) -> Result<()> {
    if matches!(args.on.device, Devices::All(_)) && !args.dry_run { workers::make_images(args) } else { Ok(()) }
}

/// An experiment that was read, loaded, checked and planned.
pub(super) struct Prepared {
    pub(super) resolved: Resolved,
    inputs: Inputs,
    pub(super) plan: Plan,
}

/// Reads an experiment file with some of its values replaced.
pub(super) fn prepare(file: &Path, set: &[String], dtype: Option<Dtype>) -> Result<Prepared> {
    prepare_with(file, set, dtype, Needs::All)
}

/// The same, with what of its inputs there must be.
pub(super) fn prepare_with(file: &Path, set: &[String], dtype: Option<Dtype>, needs: Needs) -> Result<Prepared> {
    let mut experiment = spec::read(file, set)?;
    if dtype.is_some() {
        experiment.models.values_mut().for_each(|model| model.dtype = dtype);
    }
    let (resolved, inputs) = resolve::resolve(file, experiment, needs)?;
    let plan = plan::plan(&resolved, &inputs).with_context(|| file.display().to_string())?;
    for pipeline in &inputs.pipelines {
        let distinct: BTreeSet<&String> = inputs.prompts.iter().collect();
        distinct.into_iter().try_for_each(|prompt| images::warn_of_overflow(pipeline, prompt))?;
    }
    Ok(Prepared { resolved, inputs, plan })
}

impl Prepared {
    /// Times the images of a cell once more; see [`images::time_again`].
    pub(super) fn time_again(&self, cell: &str, store: &Store, batch_size: Option<u16>) -> Result<()> {
        let cell = self.plan.cells.iter().find(|known| known.name == cell).context("expected a cell of this experiment")?;
        images::time_again(&self.inputs, cell, store, batch_size)
    }

    pub(super) fn run(&self, args: &Sweep) -> Result<()> {
        let Prepared { resolved, inputs, plan } = self;
        if args.dry_run {
            return self.count(args);
        }
        let store = Store::new(&self.directory(args.out.as_deref())?, args.shard);
        warn_of_counts(resolved, plan);
        let _lock = lock::take(store.root(), args.shard)?;
        file::begin(&store, resolved, command(args, &resolved.name))?;
        store.remove_leftovers()?;
        images::make_images(inputs, plan, &store, args.shard, args.on.batch_size)?;
        let n_missing = images::write_manifests(plan, &store)?;
        if n_missing > 0 || args.images_only {
            progress::say(&Event::finished(args.shard, n_missing, None));
            return Ok(());
        }
        self.finish(&store, args.shard)
    }

    /// Says what a run would cost.
    fn count(&self, args: &Sweep) -> Result<()> {
        let Prepared { resolved, inputs, plan } = self;
        for reason in &inputs.lacking {
            progress::say(&Event::Note { text: &format!("counted without what is not at hand: {reason}") });
        }
        let out = args.out.as_deref();
        // Whether a run belongs to this experiment can be said of a whole one alone.
        let folder = if inputs.lacking.is_empty() { self.directory(out)? } else { self.folder(out) };
        warn_of_counts(resolved, plan);
        let cost = estimate::estimate(resolved, plan, inputs, &Store::new(&folder, args.shard), args.shard)?;
        match args.json {
            true => println!("{}", serde_json::to_string(&cost)?),
            false => print!("{}", cost.text()),
        }
        Ok(())
    }

    /// Scores, and everything that shows them, once all images are there.
    fn finish(&self, store: &Store, shard: Shard) -> Result<()> {
        let Prepared { resolved, inputs, plan } = self;
        seal::remove(store)?;
        for cell in plan.cells.iter().filter(|cell| cell.asked_for) {
            schedule::write(store, cell, &inputs.pipelines[cell.model])?;
        }
        let rows = score::score(resolved, inputs, plan, store)?;
        tables::write(store, &rows)?;
        seal::write(store, &plan.cells.iter().map(|cell| cell.name.as_str()).collect::<Vec<_>>())?;
        folder::write(store)?;
        print!("{}", tables::text(&rows));
        if !resolved.metrics.comparable() {
            println!("{}", folder::NOT_COMPARABLE);
        }
        rows.iter().for_each(|row| progress::say(&Event::scores(row)));
        progress::say(&Event::finished(shard, 0, Some(store.path("report/index.html").display().to_string())));
        Ok(())
    }

    /// Where the run goes: a directory that is new or belongs to this experiment.
    pub(super) fn directory(&self, out: Option<&Path>) -> Result<PathBuf> {
        let out = self.folder(out);
        file::check_same_experiment(&Store::new(&out, Shard::WHOLE), &self.resolved)?;
        Ok(out)
    }

    fn folder(&self, out: Option<&Path>) -> PathBuf {
        out.map_or_else(|| PathBuf::from("runs").join(&self.resolved.name), Path::to_owned)
    }
}

/// Says on stderr where a cell has fewer images than the protocol's source: FID depends on their number.
fn warn_of_counts(resolved: &Resolved, plan: &Plan) {
    let protocol = &resolved.metrics.protocol;
    let counts = plan.cells.iter().filter(|cell| cell.asked_for).filter_map(|cell| {
        let n = protocol.images_at(cell.width, cell.height)?;
        (n != cell.n_scored).then_some((cell.width, cell.height, n))
    });
    let counts: BTreeSet<(u32, u32, usize)> = counts.collect();
    if !counts.is_empty() {
        let sizes: Vec<String> = counts.into_iter().map(|(width, height, n)| format!("{n} at {width}x{height}")).collect();
        let n = resolved.images_in_words(" images a cell");
        let (name, sizes) = (&protocol.name, sizes.join(", "));
        let text = format!("{n}; protocol {name} was published with {sizes}: FIDs do not compare, KIDs do");
        progress::say(&Event::Note { text: &text });
    }
}

/// The command that makes the same images again, without what belongs to this machine.
fn command(args: &Sweep, name: &str) -> String {
    let experiment = match args.experiment.is_relative() {
        true => args.experiment.display().to_string(),
        false => Path::new(name).with_extension("yaml").display().to_string(),
    };
    let overrides = args.set.iter().map(|text| format!(" --set {text}")).chain(args.dtype.map(|dtype| format!(" --dtype {dtype}")));
    format!("scalebench sweep {experiment}{}", overrides.collect::<String>())
}
