//! Results as tables: CSV, Parquet, terminal, Markdown. The only module that speaks polars.
//!
//! `results.csv` holds what is a pure function of the images, so that two runs of one experiment can
//! be compared byte for byte. `results.parquet` holds the measured costs as well, and `timings.csv`
//! holds them alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use anyhow::{Context, Result, ensure};
use polars::prelude::{Column, CsvReadOptions, CsvWriter, DataFrame, DataType, ParquetReader, ParquetWriter, SerReader, SerWriter};
use scalebench_metrics::Verdict;
use serde_json::json;

use crate::experiment::jobs::Row as Job;
use crate::experiment::methods::BASELINE;
use crate::run::numbers::{figure, value_and_half_width};
use crate::run::results::{Difference, Interval, Row, Score, Standing, label};
use crate::run::seal;
use crate::run::store::Store;
use crate::words::table::aligned;

const PARQUET: &str = "results.parquet";
const CSV: &str = "results.csv";
const TIMINGS: &str = "timings.csv";
const CELL: [&str; 5] = ["model", "scale", "width", "height", "method"];
/// Begins the names of the columns that hold what sets variants apart.
const SET: &str = "set.";
/// Operations are counted, not measured: they are the same in every run.
const FLOPS: &str = "unet_flops_per_image";
const COSTS: [&str; 2] = ["seconds_per_image", "peak_memory_bytes"];

/// All columns of the results, in order.
fn frame(rows: &[Row]) -> Result<DataFrame> {
    let mut columns = vec![
        Column::new("model".into(), rows.iter().map(|r| r.model.as_str()).collect::<Vec<_>>()),
        Column::new("scale".into(), rows.iter().map(|r| r.scale).collect::<Vec<_>>()),
        Column::new("width".into(), rows.iter().map(|r| r.width).collect::<Vec<_>>()),
        Column::new("height".into(), rows.iter().map(|r| r.height).collect::<Vec<_>>()),
        Column::new("method".into(), rows.iter().map(|r| r.method.as_str()).collect::<Vec<_>>()),
        Column::new("protocol".into(), rows.iter().map(|r| r.protocol.as_str()).collect::<Vec<_>>()),
        Column::new("n_images".into(), rows.iter().map(|r| r.n_images).collect::<Vec<_>>()),
        Column::new("n_reference".into(), rows.iter().map(|r| r.n_reference).collect::<Vec<_>>()),
    ];
    if rows.iter().any(|r| r.baseline != BASELINE) {
        columns.push(Column::new("baseline".into(), rows.iter().map(|r| r.baseline.as_str()).collect::<Vec<_>>()));
    }
    let keys: BTreeSet<&String> = rows.iter().flat_map(|r| r.set.keys()).collect();
    for key in keys {
        let name = format!("{SET}{key}").into();
        let texts: Vec<Option<&str>> = rows.iter().map(|r| r.set.get(key).map(String::as_str)).collect();
        let numbers: Option<Vec<Option<f64>>> =
            texts.iter().map(|text| text.map(|t| t.parse::<f64>().ok()).map_or(Some(None), |n| n.map(Some))).collect();
        columns.push(match numbers {
            Some(numbers) => Column::new(name, numbers),
            None => Column::new(name, texts),
        });
    }
    let interval = |columns: &mut Vec<Column>, name: String, values: Vec<Option<Interval>>| {
        let mut part = |suffix: &str, part: fn(Interval) -> f64| {
            let values: Vec<Option<f64>> = values.iter().map(|x| x.map(part)).collect();
            columns.push(Column::new(format!("{name}{suffix}").into(), values));
        };
        part("", |x| x.value);
        part("_lo", |x| x.lo);
        part("_hi", |x| x.hi);
    };
    let names: Vec<&str> = rows.first().map(|row| row.scores.iter().map(|score| score.column.as_str()).collect()).unwrap_or_default();
    for (i, name) in names.iter().enumerate() {
        interval(&mut columns, (*name).to_owned(), rows.iter().map(|r| r.scores[i].value).collect());
    }
    for (i, name) in names.iter().enumerate() {
        let differences: Vec<Option<Difference>> = rows.iter().map(|r| r.scores[i].difference).collect();
        interval(&mut columns, format!("d_{name}"), differences.iter().map(|d| d.map(|d| d.interval)).collect());
        let verdicts: Vec<Option<&str>> = differences.iter().map(|d| d.map(|d| word(&VERDICTS, d.verdict))).collect();
        columns.push(Column::new(format!("d_{name}_verdict").into(), verdicts));
        let counts: Vec<Option<u64>> = differences.iter().map(|d| d.and_then(|d| d.n_to_decide)).collect();
        columns.push(Column::new(format!("d_{name}_n_to_decide").into(), counts));
        let standings: Vec<Option<&str>> = rows.iter().map(|r| r.scores[i].standing.map(|standing| word(&STANDINGS, standing))).collect();
        columns.push(Column::new(format!("{name}_standing").into(), standings));
    }
    let seconds: Vec<Option<f64>> = rows.iter().map(|r| r.seconds_per_image).collect();
    let memory: Vec<Option<u64>> = rows.iter().map(|r| r.peak_memory_bytes).collect();
    columns.push(Column::new(COSTS[0].into(), seconds));
    columns.push(Column::new(COSTS[1].into(), memory));
    for (i, name) in names.iter().enumerate() {
        let values: Vec<Option<f64>> = rows.iter().map(|r| r.scores[i].published).collect();
        columns.push(Column::new(format!("published_{name}").into(), values));
    }
    let flops: Vec<Option<f64>> = rows.iter().map(|r| r.unet_flops_per_image).collect();
    columns.push(Column::new(FLOPS.into(), flops));
    Ok(DataFrame::new(rows.len(), columns)?)
}

const VERDICTS: [(Verdict, &str); 3] = [(Verdict::Better, "better"), (Verdict::Worse, "worse"), (Verdict::Undecided, "undecided")];

const STANDINGS: [(Standing, &str); 3] = [(Standing::Best, "best"), (Standing::Undecided, "undecided"), (Standing::Behind, "behind")];

/// How files and tables call something.
fn word<T: PartialEq>(words: &[(T, &'static str)], of: T) -> &'static str {
    words.iter().find(|(known, _)| *known == of).map_or("", |(_, word)| word)
}

/// What a word of a file stands for.
fn meaning<T: Copy>(words: &[(T, &'static str)], word: Option<String>) -> Option<T> {
    let word = word?;
    words.iter().find(|(_, known)| *known == word).map(|(meaning, _)| *meaning)
}

/// Writes `results.csv`, `results.parquet` and `timings.csv`.
pub(crate) fn write(store: &Store, rows: &[Row]) -> Result<()> {
    let mut all = frame(rows)?;
    let mut parquet = Vec::new();
    ParquetWriter::new(&mut parquet).finish(&mut all)?;
    store.write(TIMINGS, &csv(all.select(CELL.into_iter().chain(COSTS))?)?)?;
    store.write(PARQUET, &parquet)?;
    store.write(CSV, &csv_of(rows)?)
}

fn csv(mut frame: DataFrame) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    CsvWriter::new(&mut bytes).finish(&mut frame)?;
    Ok(bytes)
}

/// Rows of several runs, each behind the run that it is of.
fn joined(rows: &[(String, Row)]) -> Result<DataFrame> {
    let mut all = frame(&rows.iter().map(|(_, row)| row.clone()).collect::<Vec<_>>())?;
    all.insert_column(0, Column::new("run".into(), rows.iter().map(|(run, _)| run.as_str()).collect::<Vec<_>>()))?;
    Ok(all)
}

/// Rows of several runs with every column.
pub(crate) fn joined_csv(rows: &[(String, Row)]) -> Result<Vec<u8>> {
    csv(joined(rows)?)
}

/// The same as a list of JSON objects; what is empty is null.
pub(crate) fn joined_json(rows: &[(String, Row)]) -> Result<String> {
    let all = joined(rows)?;
    let object = |i: usize| -> Result<serde_json::Value> {
        let value = |column: &Column| -> Result<(String, serde_json::Value)> {
            let value = match column.dtype() {
                DataType::String => json!(column.str()?.get(i)),
                DataType::Float64 => json!(column.f64()?.get(i)),
                DataType::UInt32 => json!(column.u32()?.get(i)),
                _ => json!(column.u64()?.get(i)),
            };
            Ok((column.name().to_string(), value))
        };
        Ok(serde_json::Value::Object(all.columns().iter().map(value).collect::<Result<_>>()?))
    };
    Ok(serde_json::Value::Array((0..all.height()).map(object).collect::<Result<_>>()?).to_string())
}

/// Rows of several runs as one table: a method that several runs have at one model and size is followed by its run.
pub(crate) fn told_apart(rows: &[(String, Row)]) -> Vec<Row> {
    let cell = |row: &Row| (row.model.clone(), row.width, row.height, row.method.clone());
    let name = |(run, row): &(String, Row)| match rows.iter().filter(|(_, other)| cell(other) == cell(row)).count() {
        1 => row.clone(),
        _ => Row { method: format!("{} ({run})", row.method), ..row.clone() },
    };
    rows.iter().map(name).collect()
}

fn jobs(rows: &[Job]) -> Result<DataFrame> {
    let text = |name: &str, of: fn(&Job) -> &str| Column::new(name.into(), rows.iter().map(of).collect::<Vec<_>>());
    let count = |name: &str, of: fn(&Job) -> u64| Column::new(name.into(), rows.iter().map(of).collect::<Vec<_>>());
    let side = |name: &str, of: fn(&Job) -> u32| Column::new(name.into(), rows.iter().map(of).collect::<Vec<_>>());
    let float = |name: &str, of: fn(&Job) -> f64| Column::new(name.into(), rows.iter().map(of).collect::<Vec<_>>());
    let columns = vec![
        text("cell", |job| &job.cell),
        text("model", |job| &job.model),
        float("scale", |job| job.scale),
        text("method", |job| &job.method),
        count("index", |job| job.index),
        text("file", |job| &job.file),
        text("prompt", |job| &job.prompt),
        text("negative_prompt", |job| &job.negative_prompt),
        count("seed", |job| job.seed),
        side("width", |job| job.width),
        side("height", |job| job.height),
        side("base_width", |job| job.base_width),
        side("base_height", |job| job.base_height),
        count("steps", |job| job.steps),
        float("guidance_scale", |job| job.guidance_scale),
        text("sampler", |job| &job.sampler),
        float("eta", |job| job.eta),
    ];
    Ok(DataFrame::new(rows.len(), columns)?)
}

/// What other programs have to make, as CSV.
pub(crate) fn jobs_csv(rows: &[Job]) -> Result<Vec<u8>> {
    csv(jobs(rows)?)
}

/// The same as Parquet.
pub(crate) fn jobs_parquet(rows: &[Job]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut jobs(rows)?)?;
    Ok(bytes)
}

/// Reads the rows back from `results.parquet`.
pub(crate) fn read(store: &Store) -> Result<Vec<Row>> {
    let expected = || format!("{}: expected the results of a finished run", store.path(PARQUET).display());
    let bytes = seal::read(store, PARQUET)?.with_context(expected)?;
    let all = ParquetReader::new(Cursor::new(bytes)).finish().map_err(anyhow::Error::from);
    all.and_then(|all| rows(&all)).with_context(|| cannot_read(store, PARQUET))
}

/// The same, or from `results.csv` and `timings.csv` where only these were kept of a run.
pub(crate) fn read_kept(store: &Store) -> Result<Vec<Row>> {
    let (None, Some(bytes)) = (seal::read(store, PARQUET)?, seal::read(store, CSV)?) else { return read(store) };
    let mut all = typed(bytes).with_context(|| cannot_read(store, CSV))?;
    if let Some(bytes) = seal::read(store, TIMINGS)? {
        let timings = typed(bytes).with_context(|| cannot_read(store, TIMINGS))?;
        add_costs(&mut all, &timings).with_context(|| format!("{}: not of these results", store.path(TIMINGS).display()))?;
    }
    rows(&all).with_context(|| cannot_read(store, CSV))
}

fn cannot_read(store: &Store, file: &str) -> String {
    format!("cannot read {}", store.path(file).display())
}

/// A CSV file of ours with the types that its columns have in Parquet.
fn typed(bytes: Vec<u8>) -> Result<DataFrame> {
    let options = CsvReadOptions::default().with_has_header(true).with_infer_schema_length(Some(0));
    let all = options.into_reader_with_file_handle(Cursor::new(bytes)).finish()?;
    let is_text = |name: &str| {
        ["model", "method", "protocol", "baseline"].contains(&name) || name.ends_with("_verdict") || name.ends_with("_standing")
    };
    let is_count = |name: &str| ["n_images", "n_reference", COSTS[1]].contains(&name) || name.ends_with("_n_to_decide");
    let column = |column: &Column| -> Result<Column> {
        let name = column.name().as_str();
        let to = match name {
            _ if is_text(name) => DataType::String,
            "width" | "height" => DataType::UInt32,
            _ if is_count(name) => DataType::UInt64,
            // Numbers where all of its values are.
            _ if name.starts_with(SET) => return Ok(column.strict_cast(&DataType::Float64).unwrap_or_else(|_| column.clone())),
            _ => DataType::Float64,
        };
        Ok(column.strict_cast(&to)?)
    };
    Ok(DataFrame::new(all.height(), all.columns().iter().map(column).collect::<Result<_>>()?)?)
}

/// Puts costs beside the results that they are of.
fn add_costs(all: &mut DataFrame, timings: &DataFrame) -> Result<()> {
    let cells = |frame: &DataFrame| frame.select(CELL);
    ensure!(cells(all)?.equals_missing(&cells(timings)?), "expected the same cells in the same order");
    for cost in COSTS {
        all.with_column(timings.column(cost)?.clone())?;
    }
    Ok(())
}

fn rows(all: &DataFrame) -> Result<Vec<Row>> {
    let text = |name: &str, i| -> Result<Option<String>> { Ok(all.column(name)?.str()?.get(i).map(str::to_owned)) };
    let float = |name: &str, i| -> Result<Option<f64>> { Ok(all.column(name)?.f64()?.get(i)) };
    let side = |name: &str, i| -> Result<u32> { all.column(name)?.u32()?.get(i).context("empty cell") };
    let count = |name: &str, i| -> Result<Option<u64>> { Ok(all.column(name)?.u64()?.get(i)) };
    let interval = |name: &str, i| -> Result<Option<Interval>> {
        let bounds = (float(&format!("{name}_lo"), i)?, float(&format!("{name}_hi"), i)?);
        Ok(match (float(name, i)?, bounds) {
            (Some(value), (Some(lo), Some(hi))) => Some(Interval { value, lo, hi }),
            _ => None,
        })
    };
    let columns: Vec<&str> = all.get_column_names().iter().map(|name| name.as_str()).collect();
    let set = |i: usize| -> Result<BTreeMap<String, String>> {
        let mut set = BTreeMap::new();
        for column in columns.iter().filter(|column| column.starts_with(SET)) {
            let value = match all.column(column)?.str() {
                Ok(texts) => texts.get(i).map(str::to_owned),
                Err(_) => float(column, i)?.map(|number| number.to_string()),
            };
            set.extend(value.map(|value| (column[SET.len()..].to_owned(), value)));
        }
        Ok(set)
    };
    let baseline = |i: usize| -> Result<String> {
        match columns.contains(&"baseline") {
            true => text("baseline", i)?.context("empty cell"),
            false => Ok(BASELINE.to_owned()),
        }
    };
    // A score is what has a column for its differences.
    let names: Vec<String> =
        all.get_column_names().iter().filter_map(|name| Some(name.strip_prefix("d_")?.strip_suffix("_verdict")?.to_owned())).collect();
    let score = |column: &String, i: usize| -> Result<Score> {
        let verdict = text(&format!("d_{column}_verdict"), i)?;
        let difference = match (interval(&format!("d_{column}"), i)?, meaning(&VERDICTS, verdict)) {
            (Some(interval), Some(verdict)) => {
                Some(Difference { interval, verdict, n_to_decide: count(&format!("d_{column}_n_to_decide"), i)? })
            }
            _ => None,
        };
        let standing = format!("{column}_standing");
        let standing = match columns.contains(&standing.as_str()) {
            true => meaning(&STANDINGS, text(&standing, i)?),
            false => None,
        };
        let published = float(&format!("published_{column}"), i)?;
        Ok(Score { column: column.clone(), value: interval(column, i)?, difference, standing, published })
    };
    let row = |i: usize| -> Result<Row> {
        Ok(Row {
            model: text("model", i)?.context("empty cell")?,
            scale: float("scale", i)?.context("empty cell")?,
            width: side("width", i)?,
            height: side("height", i)?,
            method: text("method", i)?.context("empty cell")?,
            protocol: text("protocol", i)?.context("empty cell")?,
            n_images: count("n_images", i)?.context("empty cell")?,
            n_reference: count("n_reference", i)?,
            baseline: baseline(i)?,
            set: set(i)?,
            scores: names.iter().map(|name| score(name, i)).collect::<Result<_>>()?,
            unet_flops_per_image: if columns.contains(&FLOPS) { float(FLOPS, i)? } else { None },
            seconds_per_image: if columns.contains(&COSTS[0]) { float(COSTS[0], i)? } else { None },
            peak_memory_bytes: if columns.contains(&COSTS[1]) { count(COSTS[1], i)? } else { None },
        })
    };
    (0..all.height()).map(row).collect()
}

/// What `results.csv` is expected to hold, by `results.parquet`.
pub(crate) fn csv_of(rows: &[Row]) -> Result<Vec<u8>> {
    csv(frame(rows)?.drop_many(COSTS))
}

/// Header and cells of the table that people read: value and interval in one cell.
pub(crate) fn compact(rows: &[Row]) -> Vec<Vec<String>> {
    let none = || "–".to_owned();
    let names: Vec<&str> = rows.first().map(|row| row.scores.iter().map(|score| score.column.as_str()).collect()).unwrap_or_default();
    let filled =
        |has: fn(&Score) -> bool| -> Vec<usize> { (0..names.len()).filter(|i| rows.iter().any(|row| has(&row.scores[*i]))).collect() };
    let (differences, published) = (filled(|s| s.difference.is_some()), filled(|s| s.published.is_some()));
    let mut header: Vec<String> = ["model", "scale", "size", "method", "n"].map(str::to_owned).to_vec();
    header.extend(names.iter().map(|name| label(name).0));
    header.extend(differences.iter().map(|i| format!("Δ{}", label(names[*i]).0)));
    header.extend(["s/image", "MiB"].map(str::to_owned));
    header.extend(published.iter().map(|i| format!("published {}", label(names[*i]).0)));
    let mut lines = vec![header];
    for row in rows {
        let mut line = vec![
            row.model.clone(),
            format!("{}×", row.scale),
            format!("{}×{}", row.width, row.height),
            row.method.clone(),
            row.n_images.to_string(),
        ];
        let shown = |i: usize, x: Option<Interval>| x.map_or_else(none, |x| value_and_half_width(x, label(names[i]).1));
        line.extend(row.scores.iter().enumerate().map(|(i, score)| shown(i, score.value)));
        line.extend(differences.iter().map(|i| match row.scores[*i].difference {
            None => none(),
            // Undecided differences say so: they are the ones that get quoted as findings.
            Some(Difference { interval, verdict: Verdict::Undecided, n_to_decide }) => {
                let needed = n_to_decide.map_or_else(String::new, |n| format!(", n ≈ {n} decides"));
                format!("{} (undecided{needed})", shown(*i, Some(interval)))
            }
            Some(Difference { interval, verdict, .. }) => format!("{} ({})", shown(*i, Some(interval)), word(&VERDICTS, verdict)),
        }));
        line.push(row.seconds_per_image.map_or_else(none, |s| format!("{s:.2}")));
        line.push(row.peak_memory_bytes.map_or_else(none, |b| format!("{:.0}", b as f64 / 1048576.0)));
        line.extend(published.iter().map(|i| row.scores[*i].published.map_or_else(none, |v| figure(v, label(names[*i]).1))));
        lines.push(line);
    }
    lines
}

/// The compact table for a terminal.
pub(crate) fn text(rows: &[Row]) -> String {
    aligned(&compact(rows))
}

/// The compact table in Markdown: the best of a model and scale is bold, † marks who cannot be told from it.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut lines = compact(rows);
    let first = CELL.len();
    for (line, row) in lines[1..].iter_mut().zip(rows) {
        for (cell, score) in line[first..].iter_mut().zip(&row.scores) {
            match score.standing {
                Some(Standing::Best) => *cell = format!("**{cell}**"),
                Some(Standing::Undecided) => *cell += "†",
                Some(Standing::Behind) | None => {}
            }
        }
    }
    let rule = (0..lines[0].len()).map(|i| if i < first - 1 { "---" } else { "---:" }.to_owned()).collect();
    lines.insert(1, rule);
    // A bar would begin another cell.
    lines.iter().map(|line| format!("| {} |\n", line.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::shard::Shard;

    #[test]
    fn rows_survive_the_files_and_the_header_is_the_contract() {
        let interval = Interval { value: 1.5, lo: 1.0, hi: 2.0 };
        let shifted = |x: Interval| Interval { value: x.value + 1.0, lo: x.lo + 1.0, hi: x.hi + 1.0 };
        let difference = Difference { interval, verdict: Verdict::Worse, n_to_decide: Some(2) };
        let row = Row {
            model: "pocket".into(),
            scale: 6.25,
            width: 160,
            height: 160,
            method: "attn-sf".into(),
            protocol: "pocket".into(),
            n_images: 3,
            n_reference: Some(8),
            baseline: "direct-inf".into(),
            set: BTreeMap::new(),
            scores: vec![
                Score {
                    column: "fid_r".into(),
                    value: Some(interval),
                    difference: Some(difference),
                    standing: Some(Standing::Best),
                    published: Some(38.5),
                },
                Score { column: "kid_b".into(), value: None, difference: None, standing: None, published: None },
            ],
            unet_flops_per_image: Some(2.5e9),
            seconds_per_image: Some(0.25),
            peak_memory_bytes: None,
        };
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), Shard::WHOLE);
        write(&store, std::slice::from_ref(&row)).unwrap();
        assert_eq!(read(&store).unwrap(), std::slice::from_ref(&row));
        let without_parquet = || {
            std::fs::remove_file(store.path(PARQUET)).unwrap();
            assert!(read(&store).is_err());
            read_kept(&store).unwrap()
        };
        assert_eq!(without_parquet(), std::slice::from_ref(&row));
        let csv = String::from_utf8(store.read("results.csv").unwrap().unwrap()).unwrap();
        let expected = "model,scale,width,height,method,protocol,n_images,n_reference,\
            fid_r,fid_r_lo,fid_r_hi,kid_b,kid_b_lo,kid_b_hi,\
            d_fid_r,d_fid_r_lo,d_fid_r_hi,d_fid_r_verdict,d_fid_r_n_to_decide,fid_r_standing,\
            d_kid_b,d_kid_b_lo,d_kid_b_hi,d_kid_b_verdict,d_kid_b_n_to_decide,kid_b_standing,\
            published_fid_r,published_kid_b,unet_flops_per_image\n\
            pocket,6.25,160,160,attn-sf,pocket,3,8,1.5,1.0,2.0,,,,1.5,1.0,2.0,worse,2,best,,,,,,,38.5,,2500000000.0\n";
        assert_eq!(csv, expected);
        let table = compact(std::slice::from_ref(&row));
        assert_eq!(table[0][5..], ["FID_r", "KID_b·10³", "ΔFID_r", "s/image", "MiB", "published FID_r"]);
        assert_eq!(table[1][5..], ["1.50 ± 0.50", "–", "1.50 ± 0.50 (worse)", "0.25", "–", "38.5"]);
        let set = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let variants = [
            Row { set: set(&[("redilation.tau", "20"), ("dtype", "f32")]), baseline: "direct-inf_steps=4".into(), ..row.clone() },
            Row { set: set(&[("redilation.tau", "2.5"), ("dtype", "1")]), ..row.clone() },
            row.clone(),
        ];
        write(&store, &variants).unwrap();
        assert_eq!(read(&store).unwrap(), variants);
        assert_eq!(without_parquet(), variants);
        store.write(TIMINGS, b"model,scale,width,height,method,seconds_per_image,peak_memory_bytes\npocket,4.0,160,160,a,1.0,\n").unwrap();
        assert!(format!("{:#}", read_kept(&store).unwrap_err()).contains("timings.csv: not of these results"));
        std::fs::remove_file(store.path(TIMINGS)).unwrap();
        assert_eq!(read_kept(&store).unwrap()[0].seconds_per_image, None);
        let csv = String::from_utf8(store.read("results.csv").unwrap().unwrap()).unwrap();
        assert!(
            csv.starts_with("model,scale,width,height,method,protocol,n_images,n_reference,baseline,set.dtype,set.redilation.tau,fid_r,")
        );
        assert!(
            csv.contains(",direct-inf_steps=4,f32,20.0,1.5,")
                && csv.contains(",direct-inf,1,2.5,1.5,")
                && csv.contains(",direct-inf,,,1.5,")
        );
        write(&store, std::slice::from_ref(&row)).unwrap();
        let worse = Row {
            method: "a|b".into(),
            scores: row
                .scores
                .iter()
                .map(|s| Score { value: s.value.map(shifted), standing: Some(Standing::Behind), ..s.clone() })
                .collect(),
            ..row.clone()
        };
        let markdown = markdown(&[row, worse]);
        assert!(
            markdown.contains("| attn-sf | 3 | **1.50 ± 0.50** | – |") && markdown.contains("| a\\|b | 3 | 2.50 ± 0.50 | – |"),
            "{markdown}"
        );
        let timings = String::from_utf8(store.read("timings.csv").unwrap().unwrap()).unwrap();
        assert!(timings.starts_with("model,scale,width,height,method,seconds_per_image,peak_memory_bytes\n"));
    }
}
