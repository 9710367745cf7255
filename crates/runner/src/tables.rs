//! Results as tables: CSV, Parquet, terminal, Markdown. The only module that speaks polars.
//!
//! `results.csv` holds what is a pure function of the images, so that two runs of one experiment can
//! be compared byte for byte. `results.parquet` holds the measured costs as well, and `timings.csv`
//! holds them alone.

use anyhow::{Context, Result};
use polars::prelude::{Column, CsvWriter, DataFrame, ParquetReader, ParquetWriter, SerReader, SerWriter};

use crate::results::{Interval, PUBLISHED, Row, SCORES};
use crate::store::Store;

const PARQUET: &str = "results.parquet";
const CELL: [&str; 5] = ["model", "scale", "width", "height", "method"];
const COSTS: [&str; 2] = ["seconds_per_image", "peak_memory_bytes"];

/// All columns of the results, in order.
fn frame(rows: &[Row]) -> Result<DataFrame> {
    let mut columns = vec![
        Column::new("model".into(), rows.iter().map(|r| r.model.as_str()).collect::<Vec<_>>()),
        Column::new("scale".into(), rows.iter().map(|r| r.scale).collect::<Vec<_>>()),
        Column::new("width".into(), rows.iter().map(|r| r.width).collect::<Vec<_>>()),
        Column::new("height".into(), rows.iter().map(|r| r.height).collect::<Vec<_>>()),
        Column::new("method".into(), rows.iter().map(|r| r.method.as_str()).collect::<Vec<_>>()),
        Column::new("n_images".into(), rows.iter().map(|r| r.n_images).collect::<Vec<_>>()),
        Column::new("n_reference".into(), rows.iter().map(|r| r.n_reference).collect::<Vec<_>>()),
    ];
    for (i, name) in SCORES.iter().enumerate() {
        let mut part = |suffix: &str, part: fn(Interval) -> f64| {
            let values: Vec<Option<f64>> = rows.iter().map(|r| r.scores[i].map(part)).collect();
            columns.push(Column::new(format!("{name}{suffix}").into(), values));
        };
        part("", |x| x.value);
        part("_lo", |x| x.lo);
        part("_hi", |x| x.hi);
    }
    let seconds: Vec<Option<f64>> = rows.iter().map(|r| r.seconds_per_image).collect();
    let memory: Vec<Option<u64>> = rows.iter().map(|r| r.peak_memory_bytes).collect();
    columns.push(Column::new(COSTS[0].into(), seconds));
    columns.push(Column::new(COSTS[1].into(), memory));
    for (i, name) in PUBLISHED.iter().enumerate() {
        let values: Vec<Option<f64>> = rows.iter().map(|r| r.published[i]).collect();
        columns.push(Column::new((*name).into(), values));
    }
    Ok(DataFrame::new(rows.len(), columns)?)
}

/// Writes `results.csv`, `results.parquet` and `timings.csv`.
pub(crate) fn write(store: &Store, rows: &[Row]) -> Result<()> {
    let mut all = frame(rows)?;
    let csv = |mut part: DataFrame| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        CsvWriter::new(&mut bytes).finish(&mut part)?;
        Ok(bytes)
    };
    let mut parquet = Vec::new();
    ParquetWriter::new(&mut parquet).finish(&mut all)?;
    store.write("timings.csv", &csv(all.select(CELL.into_iter().chain(COSTS))?)?)?;
    store.write(PARQUET, &parquet)?;
    store.write("results.csv", &csv(all.drop_many(COSTS))?)
}

/// Reads the rows back from `results.parquet`.
pub(crate) fn read(store: &Store) -> Result<Vec<Row>> {
    let path = store.path(PARQUET);
    let bytes = store.read(PARQUET)?;
    let bytes = bytes.with_context(|| format!("{}: expected the results of a finished run", path.display()))?;
    let rows = || -> Result<Vec<Row>> {
        let all = ParquetReader::new(std::io::Cursor::new(bytes)).finish()?;
        let text = |name: &str, i| -> Result<String> { Ok(all.column(name)?.str()?.get(i).context("empty cell")?.to_owned()) };
        let float = |name: &str, i| -> Result<Option<f64>> { Ok(all.column(name)?.f64()?.get(i)) };
        let side = |name: &str, i| -> Result<u32> { all.column(name)?.u32()?.get(i).context("empty cell") };
        let count = |name: &str, i| -> Result<Option<u64>> { Ok(all.column(name)?.u64()?.get(i)) };
        let row = |i: usize| -> Result<Row> {
            let mut scores = [None; SCORES.len()];
            for (score, name) in scores.iter_mut().zip(SCORES) {
                let bounds = (float(&format!("{name}_lo"), i)?, float(&format!("{name}_hi"), i)?);
                if let (Some(value), (Some(lo), Some(hi))) = (float(name, i)?, bounds) {
                    *score = Some(Interval { value, lo, hi });
                }
            }
            let mut published = [None; PUBLISHED.len()];
            for (value, name) in published.iter_mut().zip(PUBLISHED) {
                *value = float(name, i)?;
            }
            Ok(Row {
                model: text("model", i)?,
                scale: float("scale", i)?.context("empty cell")?,
                width: side("width", i)?,
                height: side("height", i)?,
                method: text("method", i)?,
                n_images: count("n_images", i)?.context("empty cell")?,
                n_reference: count("n_reference", i)?.context("empty cell")?,
                scores,
                seconds_per_image: float(COSTS[0], i)?,
                peak_memory_bytes: count(COSTS[1], i)?,
                published,
            })
        };
        (0..all.height()).map(row).collect()
    };
    rows().with_context(|| format!("cannot read {}", path.display()))
}

/// Header and cells of the table that people read: value and interval in one cell.
pub(crate) fn compact(rows: &[Row]) -> Vec<Vec<String>> {
    let published: Vec<usize> = (0..PUBLISHED.len()).filter(|i| rows.iter().any(|row| row.published[*i].is_some())).collect();
    let header = ["model", "scale", "size", "method", "n", "FID_r", "KID_r·10³", "FID_b", "KID_b·10³"];
    let differences = ["ΔFID_r", "ΔKID_r·10³", "s/image", "MiB"];
    let mut lines = vec![header.into_iter().chain(differences).map(str::to_owned).collect::<Vec<_>>()];
    lines[0].extend(published.iter().map(|i| PUBLISHED[*i].replace('_', " ")));
    for row in rows {
        let score = |name: &str| {
            let factor = if name.contains("kid") { 1e3 } else { 1.0 };
            row.score(name).map_or_else(|| "–".to_owned(), |x| value_and_half_width(x, factor))
        };
        let mut line = vec![
            row.model.clone(),
            format!("{}×", row.scale),
            format!("{}×{}", row.width, row.height),
            row.method.clone(),
            row.n_images.to_string(),
        ];
        line.extend(SCORES.iter().map(|name| score(name)));
        line.push(row.seconds_per_image.map_or_else(|| "–".into(), |s| format!("{s:.2}")));
        line.push(row.peak_memory_bytes.map_or_else(|| "–".into(), |b| format!("{:.0}", b as f64 / 1048576.0)));
        line.extend(published.iter().map(|i| row.published[*i].map_or_else(|| "–".into(), |v| v.to_string())));
        lines.push(line);
    }
    lines
}

/// `12.3 ± 4.5`: as many decimals as give the half-width two significant digits.
fn value_and_half_width(x: Interval, factor: f64) -> String {
    let half_width = (x.hi - x.lo) / 2.0 * factor;
    let magnitude = if half_width > 0.0 { half_width.log10().floor() as i32 } else { 0 };
    let digits = (1 - magnitude).clamp(0, 6) as usize;
    format!("{:.digits$} ± {half_width:.digits$}", x.value * factor)
}

/// The compact table for a terminal.
pub(crate) fn text(rows: &[Row]) -> String {
    aligned(&compact(rows))
}

/// The compact table in Markdown.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut lines = compact(rows);
    let rule = vec!["---".to_owned(); lines[0].len()];
    lines.insert(1, rule);
    lines.iter().map(|line| format!("| {} |\n", line.join(" | "))).collect()
}

/// Lines with columns of equal width, two spaces apart.
pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let width = |i: usize| lines.iter().filter_map(|line| line.get(i)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let pad = |(cell, width): (&String, &usize)| format!("{cell:width$}");
    let line = |line: &Vec<String>| {
        let cells: Vec<String> = line.iter().zip(&widths).map(pad).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Shard;

    #[test]
    fn rows_survive_the_files_and_the_header_is_the_contract() {
        let interval = Interval { value: 1.5, lo: 1.0, hi: 2.0 };
        let row = Row {
            model: "pocket".into(),
            scale: 6.25,
            width: 160,
            height: 160,
            method: "attn-sf".into(),
            n_images: 3,
            n_reference: 8,
            scores: [Some(interval), None, None, None, Some(interval), None],
            seconds_per_image: Some(0.25),
            peak_memory_bytes: None,
            published: [Some(38.5), None, None, None],
        };
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), Shard::WHOLE);
        write(&store, std::slice::from_ref(&row)).unwrap();
        assert_eq!(read(&store).unwrap(), [row]);
        let csv = String::from_utf8(store.read("results.csv").unwrap().unwrap()).unwrap();
        let expected = "model,scale,width,height,method,n_images,n_reference,\
            fid_r,fid_r_lo,fid_r_hi,kid_r,kid_r_lo,kid_r_hi,fid_b,fid_b_lo,fid_b_hi,kid_b,kid_b_lo,kid_b_hi,\
            d_fid_r,d_fid_r_lo,d_fid_r_hi,d_kid_r,d_kid_r_lo,d_kid_r_hi,\
            published_fid_r,published_kid_r,published_fid_b,published_kid_b\n\
            pocket,6.25,160,160,attn-sf,3,8,1.5,1.0,2.0,,,,,,,,,,1.5,1.0,2.0,,,,38.5,,,\n";
        assert_eq!(csv, expected);
        let timings = String::from_utf8(store.read("timings.csv").unwrap().unwrap()).unwrap();
        assert!(timings.starts_with("model,scale,width,height,method,seconds_per_image,peak_memory_bytes\n"));
    }
}
