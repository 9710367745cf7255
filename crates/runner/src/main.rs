//! `scalebench`: plans, runs and reports evaluations of tuning-free high-resolution sampling.
//!
//! | layer | modules |
//! | --- | --- |
//! | what was asked | [`cli`], [`spec`] (as written), [`matrix`] (its variants), [`resolve`] (as it will run) |
//! | what will be made | [`methods`], [`protocol`], [`plan`] |
//! | what it costs | [`cost`], [`flops`] |
//! | making it | [`execute`], [`score`], [`store`], [`png`], [`memory`] |
//! | its record | [`machine`], [`schedule`] (what methods do by layer and step) |
//! | showing it | [`results`], [`tables`] (polars), [`latex`], [`figures`] (plotters), [`heatmap`], [`grid`], [`page`] (HTML), [`report`] |
//! | run against run | [`compare`], [`stats`], [`verdicts`], [`history`] (polars), [`trend`] (plotters) |
//!
//! Data goes to stdout, talk to stderr. Every failure is one line on stderr and exit status 2;
//! 1 is left for what was measured and found worse.

#![allow(clippy::print_stdout, reason = "stdout is this program's data channel")]

mod cli;
mod commands;
mod compare;
mod cost;
mod execute;
mod figures;
mod flops;
mod grid;
mod heatmap;
mod history;
mod html;
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
mod protocol;
mod report;
mod resolve;
mod results;
mod schedule;
mod score;
mod spec;
mod stats;
mod store;
mod tables;
mod trend;
mod verdicts;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    memory::keep_freed();
    match commands::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // One line, whatever the libraries below say.
            eprintln!("error: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::from(2)
        }
    }
}
