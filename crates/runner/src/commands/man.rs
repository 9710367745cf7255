//! `scalebench man`

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::cli::{self, Cli};
use crate::run::store::write_file;

pub(super) fn run(args: &cli::Man) -> Result<()> {
    let mut program = Cli::command().disable_help_subcommand(true);
    // Names and versions of the inner commands follow from the whole.
    program.build();
    match &args.dir {
        None => std::io::stdout().write_all(&page(&program)?).context("cannot write to stdout"),
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            write_all(&program, program.get_name(), folder)
        }
    }
}

/// The pages of a command and of those within it: `scalebench-weights-convert.1`.
fn write_all(command: &Command, name: &str, folder: &Path) -> Result<()> {
    write_file(&folder.join(format!("{name}.1")), &page(&command.clone().display_name(name.to_owned()))?)?;
    command.get_subcommands().try_for_each(|inner| write_all(inner, &format!("{name}-{}", inner.get_name()), folder))
}

fn page(command: &Command) -> Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}
