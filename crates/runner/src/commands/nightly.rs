//! `scalebench nightly`

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::{compare as command, sweep};
use crate::cli::{Nightly, Sweep};
use crate::compare::finished::Run;
use crate::compare::history::{Entry, History, Night};
use crate::compare::judge::{self, Comparison, Costs};
use crate::compare::{trend, verdicts};
use crate::experiment::plan::Outline;
use crate::host::device;
use crate::report::tables;
use crate::run::progress::Log;
use crate::run::score::mean_seconds;
use crate::run::shard::Shard;
use crate::run::store::Store;

/// How often the images of a cell that seems slower are timed again before it is called so.
const TIMED_AGAIN: usize = 2;

pub(super) fn run(args: &Nightly) -> Result<ExitCode> {
    let criteria = command::criteria(args.judge)?;
    let mut history = History::open(&args.history)?;
    if args.accept {
        let night = history.accept_latest()?;
        println!("accepted: the run of {}", night.date);
        return Ok(ExitCode::SUCCESS);
    }
    let latest = history.latest();
    let sweep = Sweep {
        experiment: args.experiment.clone(),
        out: Some(latest.clone()),
        shard: Shard::WHOLE,
        images_only: false,
        set: args.set.clone(),
        dtype: None,
        on: args.on.clone(),
        log: Log::Text,
        dry_run: false,
        json: false,
    };
    device::open(args.on.device.first())?;
    let prepared = sweep::prepare(&args.experiment, &args.set, None)?;
    let accepted = history.accepted()?;
    if let Some((night, run)) = &accepted {
        let (here, there) = (&prepared.resolved, &run.resolved);
        let place = args.history.display();
        ensure!(here.name == there.name, "{place}: this history is that of {}, expected one of {} or none", there.name, here.name);
        // Before the night is spent on it.
        judge::check_comparable(there, here).with_context(|| format!("{place}: accepted run of {}", night.date))?;
    }
    let night = history.begin(Night::now()?, &prepared.resolved)?;
    // The night has a directory of its own by now, which several devices share.
    sweep::make_on_all_devices(&sweep)?;
    prepared.run(&sweep)?;

    let run = Run::open(&latest)?;
    let comparison = match &accepted {
        None => None,
        Some((before, accepted)) => {
            let same_machine = before.machine == night.machine;
            let costs = Costs { speed: !args.no_speed && same_machine, memory: !args.no_memory && same_machine };
            let compare = || -> Result<Comparison> {
                let mut found = judge::compare(accepted, &run, criteria, costs)?;
                if !same_machine {
                    let (before, now) = (&before.machine, &night.machine);
                    found.notes.push(format!("time and memory are not judged: the accepted run was made on {before}, this one on {now}"));
                }
                Ok(found)
            };
            let mut found = compare()?;
            for _ in 0..TIMED_AGAIN {
                let slower = found.regressions.iter().filter(|regression| regression.column == judge::SPEED);
                let slower: Vec<String> = slower.map(|regression| regression.cell.clone()).collect();
                if slower.is_empty() {
                    break;
                }
                for cell in slower {
                    eprintln!("{cell}: slower than the accepted run; timed again");
                    prepared.time_again(&cell, run.store(), args.on.batch_size)?;
                }
                found = compare()?;
            }
            Some(found)
        }
    };
    if let Some(comparison) = &comparison {
        let store = Store::new(&latest, Shard::WHOLE);
        store.write("comparison.json", &serde_json::to_vec_pretty(comparison)?)?;
        store.write("comparison.xml", verdicts::junit(comparison).as_bytes())?;
        print!("\n{}", verdicts::text(comparison));
    } else {
        // Before the history knows of it, so that no history is without an accepted run.
        history.accept(&run)?;
        println!("accepted: the first run of this history");
    }
    let before = accepted.as_ref().map(|(night, _)| night.date.clone());
    history.append(entries(&night, &run, before, comparison.as_ref())?)?;
    if let Some(svg) = trend::chart(&history.entries)? {
        history.write("trend.svg", svg.as_bytes())?;
    }
    Ok(comparison.as_ref().map_or(ExitCode::SUCCESS, command::status))
}

/// The night's rows of the history.
fn entries(night: &Night, run: &Run, compared_with: Option<String>, comparison: Option<&Comparison>) -> Result<Vec<Entry>> {
    let mut regressions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for regression in comparison.iter().flat_map(|comparison| &comparison.regressions) {
        regressions.entry(&regression.cell).or_default().push(&regression.what);
    }
    let entry = |row: crate::run::results::Row| -> Result<Entry> {
        let is_row = |cell: &&Outline| -> bool {
            let model = &run.resolved.models[cell.model];
            let size = model.size(&cell.scale).ok();
            cell.asked_for && model.name == row.model && cell.method == row.method && size == Some((row.width, row.height))
        };
        let cell = run.cells.iter().map(|cell| &cell.outline).find(is_row);
        let cell = cell.with_context(|| format!("{} {}x{} {}: no such cell", row.model, row.width, row.height, row.method))?.name.clone();
        let (images, features) = run.digests(&cell)?;
        Ok(Entry {
            night: night.clone(),
            experiment: run.resolved.name.clone(),
            regressions: regressions.get(cell.as_str()).map(|sentences| sentences.join("; ")),
            model: row.model,
            scale: row.scale,
            width: row.width,
            height: row.height,
            method: row.method,
            protocol: row.protocol,
            n_images: row.n_images,
            images,
            features,
            scores: row.scores.into_iter().map(|score| (score.column, score.value)).collect(),
            // Not the row's, which does not know what was timed again.
            seconds_per_image: mean_seconds(&run.store().all_timings(&cell)?),
            peak_memory_bytes: row.peak_memory_bytes,
            compared_with: compared_with.clone(),
            cell,
        })
    };
    tables::read(run.store())?.into_iter().map(entry).collect()
}
