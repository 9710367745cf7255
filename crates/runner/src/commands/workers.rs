//! One process for each of several devices, each with a share of the images, in one run directory.

use std::ffi::OsString;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cli::Sweep;
use crate::host::interrupt::{self, Interrupted};
use crate::run::shard::Shard;

/// How often processes are asked whether they are done, and this one whether it should stop.
const POLL: Duration = Duration::from_millis(200);

/// Makes the images of a sweep on all of its devices.
pub(super) fn make_images(args: &Sweep) -> Result<()> {
    let devices = args.on.device.each()?;
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let mut workers = Vec::with_capacity(devices.len());
    for (k, device) in devices.iter().enumerate() {
        let shard = Shard { index: args.shard.index + args.shard.count * k, count: args.shard.count * devices.len() };
        let mut command = Command::new(&program);
        command.arg("sweep").arg(&args.experiment).arg("--images-only");
        command.args(["--device", &device.to_string(), "--shard", &shard.to_string()]);
        command.args(args.out.iter().flat_map(|out| [OsString::from("--out"), out.into()]));
        command.args(args.set.iter().flat_map(|set| ["--set", set]));
        command.args(args.dtype.iter().flat_map(|dtype| ["--dtype".to_owned(), dtype.to_string()]));
        command.args(args.on.batch_size.iter().flat_map(|n| ["--batch-size".to_owned(), n.to_string()]));
        command.args(["--log", args.log.name()]);
        workers.push((*device, command.spawn().context("cannot start a process for a device")?));
    }
    let mut told = false;
    let mut failed = Vec::new();
    while !workers.is_empty() {
        std::thread::sleep(POLL);
        if !told && interrupt::check().is_err() {
            told = true;
            workers.iter().for_each(|(_, worker)| tell(worker));
        }
        let mut waiting = Vec::with_capacity(workers.len());
        for (device, mut worker) in workers {
            match worker.try_wait().context("cannot wait for a device's process")? {
                None => waiting.push((device, worker)),
                Some(status) if status.success() => {}
                Some(status) => failed.push((device, status)),
            }
        }
        workers = waiting;
    }
    match failed.iter().find(|(_, status)| status.code() != Some(interrupt::STATUS.into())) {
        Some((device, status)) => bail!("{device}: its process ended with {status}; what was made is kept, and the same command goes on"),
        None if failed.is_empty() => Ok(()),
        None => Err(Interrupted.into()),
    }
}

/// Passes SIGTERM on: schedulers send it to the first process alone.
fn tell(worker: &Child) {
    #[cfg(target_os = "linux")]
    if let Ok(pid) = i32::try_from(worker.id()) {
        // SAFETY: a child that has not been waited for keeps its number.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = worker;
}
