//! One module per subcommand with work of its own.

mod bench;
mod compare;
mod completions;
mod dataset;
mod disperse;
mod generate;
mod grid;
mod jobs;
mod list;
mod man;
mod nightly;
mod reconstruct;
mod results;
mod score;
mod site;
mod status;
mod submit;
mod sweep;
mod verify;
mod votes;
mod weights;
mod workers;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Cli, Command};
use crate::experiment::schema;
use crate::host::data;
use crate::report::folder;
use crate::run::file::RunFile;
use crate::run::lock;
use crate::run::shard::Shard;
use crate::run::store::Store;

/// Runs what the command line asks for; a comparison that finds a regression exits with 1.
pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let done = match cli.command {
        Command::Compare(args) => return compare::run(&args),
        Command::Nightly(args) => return nightly::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Submit(args) => submit::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Jobs(args) => jobs::run(&args),
        Command::Results(args) => results::run(&args),
        Command::Site(args) => site::run(&args),
        Command::Unpack(args) => data::unpack(&args.folder),
        Command::Generate(args) => generate::run(args),
        Command::Grid(args) => grid::run(&args),
        Command::Votes(args) => votes::run(&args),
        Command::Features(args) => score::features(&args),
        Command::Score(args) => score::run(&args),
        Command::Stats(args) => score::stats(&args),
        Command::Protocols(args) => list::protocols(&args),
        Command::Disperse(args) => disperse::run(&args),
        Command::Report(args) => report(&args.dir),
        Command::Verify(args) => return verify::run(&args),
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

/// Makes the report of a finished run again, while no sweep is at work on it.
fn report(run: &Path) -> Result<()> {
    let store = Store::new(run, Shard::WHOLE);
    // Before anything is written into what is no run.
    RunFile::read(&store)?;
    let _lock = lock::take(run, Shard::WHOLE)?;
    folder::write(&store)
}
