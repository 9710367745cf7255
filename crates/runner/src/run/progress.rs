//! What the program says on stderr while it works: bars and lines for people, or one JSON object a line for programs.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::run::results::{Interval, Row};
use crate::run::shard::Shard;
use crate::words::time::{date, duration};

/// How it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Log {
    Text,
    Json,
}

impl Log {
    /// As the option takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// For the whole process, since the last error is told where nobody knows the command line any more.
static AS_JSON: AtomicBool = AtomicBool::new(false);

/// Chooses how [`say`] says it.
pub(crate) fn log_as(log: Log) {
    AS_JSON.store(log == Log::Json, Ordering::Relaxed);
}

/// Something that happened. The names are those of `--log json`; `experiments/README.md` lists them.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// Images that are this process's, and those among them that are not there yet.
    Started {
        images: usize,
        to_make: usize,
    },
    /// An image was made and written, the `done`-th of `of` to make.
    Image {
        cell: &'a str,
        index: usize,
        seconds: f64,
        done: usize,
        of: usize,
    },
    /// The last of a cell's `images` that were to make.
    Cell {
        cell: &'a str,
        images: usize,
        seconds: f64,
        done: usize,
        of: usize,
    },
    /// Features that were not in the cache.
    Features {
        what: &'a str,
        preprocess: &'a str,
        images: usize,
        seconds: f64,
    },
    /// A row of the results.
    Scores {
        model: &'a str,
        scale: f64,
        method: &'a str,
        n_images: u64,
        scores: BTreeMap<&'a str, Option<Interval>>,
    },
    /// Everything that was asked for is there; `missing` images are other shards'.
    Finished {
        shard: String,
        missing: usize,
        report: Option<String>,
    },
    Note {
        text: &'a str,
    },
    Warning {
        text: &'a str,
    },
    /// Told to stop; see [`crate::host::interrupt`].
    Stopped {
        text: &'a str,
    },
    Error {
        text: &'a str,
    },
}

impl<'a> Event<'a> {
    pub(crate) fn scores(row: &'a Row) -> Event<'a> {
        let scores = row.scores.iter().map(|score| (score.column.as_str(), score.value)).collect();
        Event::Scores { model: &row.model, scale: row.scale, method: &row.method, n_images: row.n_images, scores }
    }

    pub(crate) fn finished(shard: Shard, missing: usize, report: Option<String>) -> Event<'a> {
        Event::Finished { shard: format!("{}/{}", shard.index, shard.count), missing, report }
    }

    /// For people; none where bars or the results say it.
    fn text(&self, bars: bool) -> Option<String> {
        match self {
            Event::Started { .. } | Event::Image { .. } | Event::Scores { .. } => None,
            Event::Cell { .. } | Event::Features { .. } if bars => None,
            Event::Cell { cell, images, seconds, done, of } => {
                let each = seconds / *images as f64;
                Some(format!("{cell}: {images} images in {}, {each:.2} s each ({done}/{of} images)", duration(*seconds)))
            }
            Event::Features { what, preprocess, images, seconds } => {
                Some(format!("features of {what}, {preprocess}: {images} images, {seconds:.1} s"))
            }
            Event::Finished { report: Some(report), .. } => Some(format!("report: {report}")),
            Event::Finished { shard, missing: 0, .. } => Some(format!("shard {shard} is done; all images are there")),
            Event::Finished { shard, missing, .. } => Some(format!("shard {shard} is done; other shards have {missing} images to make")),
            Event::Note { text } => Some(format!("note: {text}")),
            Event::Warning { text } => Some(format!("warning: {text}")),
            Event::Stopped { text } => Some(format!("stopped: {text}")),
            Event::Error { text } => Some(format!("error: {text}")),
        }
    }
}

/// Says it on one line of stderr, if there is something to say.
pub(crate) fn say(event: &Event<'_>) {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        #[serde(flatten)]
        event: &'a Event<'a>,
    }
    if AS_JSON.load(Ordering::Relaxed) {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let line = Line { time: date(seconds), event };
        eprintln!("{}", serde_json::to_string(&line).expect("events have nothing that JSON lacks"));
    } else if let Some(text) = event.text(bars()) {
        eprintln!("{text}");
    }
}

/// Whether progress is shown as bars.
fn bars() -> bool {
    std::io::stderr().is_terminal() && !AS_JSON.load(Ordering::Relaxed)
}

/// A bar with an estimate of what is left; invisible unless a person watches.
pub(crate) fn bar(length: u64, message: &str) -> ProgressBar {
    if !bars() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg} [{elapsed} elapsed, {eta} left]");
    let bar = ProgressBar::new(length).with_message(message.to_owned());
    bar.set_style(style.expect("a valid template"));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
