//! Slurm: job scripts, and handing them over.
//!
//! A script is whole: it can be read, edited and given to `sbatch` by hand, from anywhere. What it runs is `scalebench
//! sweep`, whose exit status 75 says that it was told to stop and is not finished.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use shlex::{try_join, try_quote};

use crate::host::interrupt;

/// What each job asks for, in the words of sbatch; the cluster's defaults where nothing is said.
#[derive(Debug, Args)]
pub(crate) struct Resources {
    #[arg(long, value_name = "P")]
    pub(crate) partition: Option<String>,
    /// GPUs of each job, for example 1 or a100:1 (this version computes on the CPU)
    #[arg(long, value_name = "G")]
    pub(crate) gpus: Option<String>,
    /// Cores of each job, and threads that it uses
    #[arg(long, value_name = "C")]
    pub(crate) cpus_per_task: Option<String>,
    /// Memory of each job, for example 8G
    #[arg(long, value_name = "M")]
    pub(crate) mem: Option<String>,
    /// Time limit of each job, for example 4:00:00
    #[arg(long, value_name = "T")]
    pub(crate) time: Option<String>,
}

/// What the jobs of a run have in common.
pub(crate) struct Jobs<'a> {
    /// Of the experiment; names the jobs.
    pub(crate) name: &'a str,
    /// Absolute: where the command was given, from which its relative paths count.
    pub(crate) folder: &'a Path,
    /// Absolute: where the logs go.
    pub(crate) logs: &'a Path,
    /// The program and arguments of the whole sweep.
    pub(crate) sweep: &'a [String],
    pub(crate) shards: usize,
    pub(crate) resources: &'a Resources,
    /// Seconds between SIGTERM and the time limit.
    pub(crate) grace: u32,
}

impl Jobs<'_> {
    /// The script of the array: its task `i` makes shard `i`.
    pub(crate) fn shards(&self) -> Result<String> {
        let n = self.shards;
        // The task's number is the shell's to fill in, so it stands outside what is quoted.
        let command = format!("{} --images-only --shard \"$SLURM_ARRAY_TASK_ID/{n}\"", self.command()?);
        self.script(&format!("{n} shards, one a task of this array."), Some(n), "%A_%a.log", &command)
    }

    /// The script of the job that makes the results, once all images are there.
    pub(crate) fn merge(&self) -> Result<String> {
        self.script("Scores, tables and report, after the shards.", None, "%j.log", &self.command()?)
    }

    fn command(&self) -> Result<String> {
        try_join(self.sweep.iter().map(String::as_str)).with_context(|| format!("{:?}", self.sweep))
    }

    fn script(&self, about: &str, array: Option<usize>, log: &str, command: &str) -> Result<String> {
        let Resources { partition, gpus, cpus_per_task, mem, time } = self.resources;
        let name: String = self.name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
        let logs = utf8(self.logs)?;
        // Slurm's own quoting has no word for these.
        ensure!(
            !logs.contains(|c: char| c.is_control() || "\"\\".contains(c)),
            "{logs:?}: expected a run directory without control characters, double quotes and backslashes"
        );
        let log = format!("{}/{log}", logs.replace('%', "%%"));
        let directives = [
            ("job-name", Some(name)),
            ("array", array.map(|n| format!("0-{}", n - 1))),
            ("output", Some(log)),
            ("open-mode", Some("append".to_owned())),
            ("signal", Some(format!("B:TERM@{}", self.grace))),
            ("partition", partition.clone()),
            ("gpus", gpus.clone()),
            ("cpus-per-task", cpus_per_task.clone()),
            ("mem", mem.clone()),
            ("time", time.clone()),
        ];
        let mut text = "#!/bin/bash\n#SBATCH --requeue\n".to_owned();
        for (key, value) in directives {
            let Some(value) = value else { continue };
            let plain = |c: char| !c.is_control() && !"\"\\".contains(c);
            ensure!(!value.is_empty() && value.chars().all(plain), "--{key}: expected a value as sbatch takes it, found {value:?}");
            writeln!(text, "#SBATCH --{key}=\"{value}\"").expect("writing to a string");
        }
        let folder = utf8(self.folder)?;
        let folder = try_quote(folder).with_context(|| format!("{folder:?}"))?;
        let status = interrupt::STATUS;
        write!(
            text,
            r#"# Written by `scalebench submit`. {about}

cd -- {folder} || exit 2
export RAYON_NUM_THREADS="${{RAYON_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-${{SLURM_CPUS_ON_NODE:-1}}}}}}"

# The signal comes to this shell alone, which passes it on.
sweep=
told=
trap 'told=1; [ -z "$sweep" ] || kill -TERM "$sweep"' TERM
{command} &
sweep=$!
[ -z "$told" ] || kill -TERM "$sweep"
while
    told=
    wait "$sweep"
    status=$?
    # A signal ends the wait, not the sweep.
    [ -n "$told" ]
do :; done

# {status}: told to stop and not finished; 143: told before it listened. The same job goes on with it, but for one that somebody has
# cancelled, which gets the same signal: that is no longer running.
if [ "$status" -eq {status} ] || [ "$status" -eq 143 ]; then
    if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
"#
        )
        .expect("writing to a string");
        Ok(text)
    }
}

pub(crate) fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{}: expected a path in UTF-8, as a job script can hold it", path.display()))
}

/// Asks whether jobs can be submitted from here.
pub(crate) fn check() -> Result<()> {
    sbatch(&["--version".as_ref()]).map(|_| ())
}

/// Submits a script, to run after all of job `after` has succeeded; returns its job's number.
pub(crate) fn submit(script: &Path, after: Option<&str>) -> Result<String> {
    let dependency = after.map(|job| format!("--dependency=afterok:{job}"));
    let mut args: Vec<&OsStr> = vec!["--parsable".as_ref()];
    args.extend(dependency.as_deref().map(OsStr::new));
    args.push(script.as_os_str());
    let answer = sbatch(&args)?;
    // `JOB` or `JOB;CLUSTER`.
    let job = answer.trim().split(';').next().unwrap_or_default();
    ensure!(!job.is_empty() && job.bytes().all(|c| c.is_ascii_digit()), "sbatch: expected the number of a job, found {answer:?}");
    Ok(job.to_owned())
}

fn sbatch(args: &[&OsStr]) -> Result<String> {
    let output = match Command::new("sbatch").args(args).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("sbatch: not found on PATH; expected to be where jobs are submitted to Slurm (--dry-run prints the scripts)")
        }
        Err(error) => return Err(error).context("cannot run sbatch"),
    };
    ensure!(output.status.success(), "sbatch: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
