//! `scalebench`: plans, runs and reports evaluations of tuning-free high-resolution sampling.
//!
//! | layer | modules |
//! | --- | --- |
//! | what was asked | [`cli`], [`spec`] (as written), [`schema`] (for editors), [`matrix`] (its variants), [`prompts`] (polars), [`resolve`] (as it will run) |
//! | what will be made | [`methods`], [`protocol`], [`plan`] |
//! | what it costs | [`cost`], [`flops`] |
//! | making it | [`execute`], [`score`], [`store`], [`png`], [`memory`], [`interrupt`], [`slurm`] (job scripts) |
//! | talking | [`progress`]: stderr, for people or programs |
//! | its record | [`machine`], [`schedule`] (what methods do by layer and step) |
//! | showing it | [`results`], [`tables`] (polars), [`latex`], [`figures`] (plotters), [`heatmap`], [`grid`], [`page`] (HTML), [`report`] |
//! | run against run | [`compare`], [`stats`], [`verdicts`], [`history`] (polars), [`trend`] (plotters) |
//!
//! Data goes to stdout, talk to stderr. Every failure is one line on stderr and exit status 2;
//! 1 is left for what was measured and found worse, 75 for a sweep that was told to stop.

#![allow(clippy::print_stdout, reason = "stdout is this program's data channel")]

mod cli;
mod commands;
mod compare;
mod cost;
mod device;
mod execute;
mod figures;
mod flops;
mod grid;
mod heatmap;
mod history;
mod html;
mod interrupt;
mod latex;
mod machine;
#[cfg(test)]
mod made_up;
mod matrix;
mod memory;
mod methods;
mod page;
mod plan;
mod png;
mod progress;
mod prompts;
mod protocol;
mod report;
mod resolve;
mod results;
mod schedule;
mod schema;
mod score;
mod slurm;
mod spec;
mod stats;
mod store;
mod tables;
mod trend;
mod verdicts;

use std::process::ExitCode;

use clap::Parser;

use crate::interrupt::Interrupted;
use crate::progress::Event;

fn main() -> ExitCode {
    memory::keep_freed();
    match commands::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) if error.is::<Interrupted>() => {
            progress::say(&Event::Stopped { text: &Interrupted.to_string() });
            ExitCode::from(interrupt::STATUS)
        }
        Err(error) => {
            // One line, whatever the libraries below say.
            progress::say(&Event::Error { text: &format!("{error:#}").replace('\n', " ") });
            ExitCode::from(2)
        }
    }
}
