//! One module per subcommand with work of its own.

mod bench;
mod compare;
mod completions;
mod dataset;
mod disperse;
mod generate;
mod list;
mod man;
mod nightly;
mod reconstruct;
mod score;
mod status;
mod submit;
mod sweep;
mod weights;
mod workers;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use scalebench_generation::Pipeline;

use crate::cli::{Cli, Command, Shard};
use crate::progress::{self, Event};
use crate::store::Store;
use crate::{report, schema};

/// Runs what the command line asks for; a comparison that finds a regression exits with 1.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let done = match cli.command {
        Command::Compare(args) => return compare::run(&args),
        Command::Nightly(args) => return nightly::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Submit(args) => submit::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Generate(args) => generate::run(args),
        Command::Features(args) => score::features(&args),
        Command::Score(args) => score::run(&args),
        Command::Stats(args) => score::stats(&args),
        Command::Protocols(args) => list::protocols(&args),
        Command::Disperse(args) => disperse::run(&args),
        Command::Report(args) => report::write(&Store::new(&args.dir, Shard::WHOLE)),
        Command::Methods => list::methods(),
        Command::Schema => schema::print(),
        Command::Models(args) => list::models(&args),
        Command::Dataset(args) => dataset::run(&args),
        Command::Reconstruct(args) => reconstruct::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Weights(args) => weights::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Says on stderr what of a prompt the text encoder does not see.
pub(crate) fn warn_of_overflow(pipeline: &Pipeline, prompt: &str) -> Result<()> {
    let cut = pipeline.overflow(prompt)?;
    if !cut.is_empty() {
        progress::say(&Event::Warning { text: &format!("the prompt is longer than the text encoder takes; not seen: `{cut}`") });
    }
    Ok(())
}

/// Writes a file under a path of the user's choice, whole or not at all.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    // A bare file name has the empty path as its parent, which cannot be opened.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().with_context(|| format!("{}: expected a file name", path.display()))?;
    Store::new(folder, Shard::WHOLE).write(&name.to_string_lossy(), bytes)
}
