//! `scalebench submit`

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::sweep;
use crate::cli::{Engine, Submit};
use crate::host::device::Devices;
use crate::run::shard::Shard;
use crate::run::slurm::{self, Jobs};
use crate::run::store::Store;

pub(super) fn run(args: &Submit) -> Result<()> {
    let Engine::Slurm = args.engine;
    // Errors of the experiment are told here, once, and not by every job.
    let prepared = sweep::prepare(&args.experiment, &args.set, None)?;
    let (name, images) = (&prepared.resolved.name, prepared.resolved.images.most());
    ensure!((1..=images).contains(&args.array), "--array: expected 1 to {images}, the images of a cell; found {}", args.array);
    let out = prepared.directory(args.out.as_deref())?;

    let program = std::env::current_exe().context("cannot find this program's file")?;
    let mut command = vec![slurm::utf8(&program)?.to_owned(), "sweep".to_owned()];
    command.extend([slurm::utf8(&args.experiment)?.to_owned(), "--out".to_owned(), slurm::utf8(&out)?.to_owned()]);
    command.extend(args.set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
    if args.on.device != Devices::default() {
        command.extend(["--device".to_owned(), args.on.device.to_string()]);
    }
    command.extend(args.on.batch_size.iter().flat_map(|n| ["--batch-size".to_owned(), n.to_string()]));
    let folder = std::env::current_dir().context("cannot find the current directory")?;
    let store = Store::new(&folder.join(&out), Shard::WHOLE);
    let logs = store.path("slurm");
    let jobs =
        Jobs { name, folder: &folder, logs: &logs, sweep: &command, shards: args.array, resources: &args.resources, grace: args.grace };
    let scripts = [("slurm/shards.sbatch", jobs.shards()?), ("slurm/merge.sbatch", jobs.merge()?)];
    if args.dry_run {
        for (file, text) in &scripts {
            println!("==> {} <==\n{text}", out.join(file).display());
        }
        return Ok(());
    }
    slurm::check()?;
    for (file, text) in &scripts {
        store.write(file, text.as_bytes())?;
    }
    let [shards, merge] = scripts.map(|(file, _)| store.path(file));
    let array = slurm::submit(&shards, None)?;
    let merge = slurm::submit(&merge, Some(&array)).with_context(|| waiting(&array, &merge))?;
    println!("shards: job {array}, tasks 0 to {}", args.array - 1);
    println!("merge: job {merge}");
    eprintln!("logs: {}; progress: scalebench status {}", logs.display(), out.display());
    Ok(())
}

/// What is left to do where only the array could be submitted.
fn waiting(array: &str, merge: &Path) -> String {
    format!("the shards are job {array}; expected to submit {} after them", merge.display())
}
