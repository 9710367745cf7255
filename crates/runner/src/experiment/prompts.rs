//! Where prompts come from: the embedded set, a text file with one a line, a column of a table, or [`captions`].

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use polars::prelude::{CsvParseOptions, CsvReadOptions, DataFrame, DataType, ParquetReader, SerReader};
use scalebench_emoji::{Motion, emojis, prompt_order};

use crate::experiment::resolved::Prompts;
use crate::experiment::yaml::ensure_one_of;
use crate::experiment::{captions, spec};

/// What prompts are, and one for each of `n_images` images, or videos; relative paths start at `folder`.
pub(crate) fn resolve(written: &spec::Prompts, n_images: usize, of_videos: bool, folder: &Path) -> Result<(Prompts, Vec<String>)> {
    let spec::Prompts { source, seed, file, column } = written;
    let Some(path) = file else {
        ensure!(column.is_none(), "column: expected a table to take it from, file: FILE.csv, FILE.tsv or FILE.parquet");
        let seed = seed.unwrap_or(0);
        let order = prompt_order(seed);
        let prompt = |i: usize| {
            let emoji = &emojis()[order[i % order.len()]];
            if of_videos { Motion::of(emoji, i / order.len()).caption(emoji) } else { emoji.name.clone() }
        };
        let list = (0..n_images).map(prompt).collect();
        return Ok((Prompts::Emoji { seed }, list));
    };
    let file = folder.join(path);
    let ends = |ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
    let (coco, shown) = (ends("json"), || file.display().to_string());
    ensure!(source.is_none() && (seed.is_none() || coco), "expected either source and seed, or file");
    let (found, digest) = if ends("tar") {
        captions::shards(&file, column.as_deref()).with_context(shown)?
    } else {
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let digest = blake3::hash(&bytes).to_string();
        let found = match (Format::of(path), column) {
            (Some(format), column) => format.read(bytes, column.as_deref()),
            (None, column) if ends("jsonl") => captions::json_lines(&bytes, column.as_deref()),
            (None, None) if coco => captions::coco(&bytes, seed.unwrap_or(0)),
            (None, None) => lines(&bytes),
            (None, Some(_)) => {
                bail!("column: expected a table to take it from, .csv, .tsv, .parquet or .jsonl, or .tar shards, found {}", shown())
            }
        };
        (found.with_context(shown)?, digest)
    };
    let list = (0..n_images).map(|i| found[i % found.len()].clone()).collect();
    Ok((Prompts::File { path: path.clone(), column: column.clone(), seed: coco.then_some(seed.unwrap_or(0)), digest }, list))
}

/// Stands in for a file that is not there: empty prompts, as many as there are images.
pub(crate) fn unread(written: &spec::Prompts, n_images: usize) -> (Prompts, Vec<String>) {
    let path = written.file.clone().unwrap_or_default();
    (Prompts::File { path, column: written.column.clone(), seed: written.seed, digest: String::new() }, vec![String::new(); n_images])
}

/// The entries of a table's column; the name says which kind of table it is.
pub(crate) fn table(name: &Path, bytes: Vec<u8>, column: &str) -> Result<Vec<String>> {
    Format::of(name).context("expected .csv, .tsv or .parquet")?.read(bytes, Some(column))
}

fn lines(bytes: &[u8]) -> Result<Vec<String>> {
    let text = std::str::from_utf8(bytes).context("expected UTF-8 text")?;
    let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "expected one prompt a line, found none");
    Ok(lines)
}

/// Tables, by the ends of their files' names.
#[derive(Clone, Copy)]
enum Format {
    Csv,
    Tsv,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Format::Csv),
            "tsv" => Some(Format::Tsv),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }

    /// The entries of a column.
    fn read(self, bytes: Vec<u8>, column: Option<&str>) -> Result<Vec<String>> {
        let names = self.columns(&bytes)?;
        let Some(column) = column else { bail!("expected `column`, one of {}", names.join(", ")) };
        ensure_one_of("column", column, &names)?;
        let table = match self {
            Format::Parquet => ParquetReader::new(Cursor::new(bytes)).with_columns(Some(vec![column.to_owned()])).finish()?,
            Format::Csv | Format::Tsv => self.text_table(bytes, None)?,
        };
        let entries = table.column(column)?;
        let entries =
            entries.cast(&DataType::String).ok().filter(|_| !entries.dtype().is_nested() && !entries.dtype().is_primitive_numeric());
        let entries = entries.with_context(|| {
            format!(
                "column {column}: expected text, found {}",
                table.column(column).map_or_else(|_| String::new(), |c| c.dtype().to_string())
            )
        })?;
        let entry = |(i, text): (usize, Option<&str>)| -> Result<String> {
            let text = text.map(str::trim).filter(|text| !text.is_empty());
            Ok(text.with_context(|| format!("column {column}: expected a prompt in every row, row {} has none", i + 1))?.to_owned())
        };
        let prompts: Vec<String> = entries.str()?.iter().enumerate().map(entry).collect::<Result<_>>()?;
        ensure!(!prompts.is_empty(), "expected one prompt a row, found no rows");
        Ok(prompts)
    }

    fn columns(self, bytes: &[u8]) -> Result<Vec<String>> {
        Ok(match self {
            Format::Parquet => {
                let schema = ParquetReader::new(Cursor::new(bytes)).schema()?;
                schema.iter_names().map(ToString::to_string).collect()
            }
            Format::Csv | Format::Tsv => {
                self.text_table(bytes.to_vec(), Some(0))?.get_column_names().iter().map(ToString::to_string).collect()
            }
        })
    }

    /// Every value is text: a caption that is a number stays as it is written.
    fn text_table(self, bytes: Vec<u8>, n_rows: Option<usize>) -> Result<DataFrame> {
        let parse = match self {
            // As PartiPrompts is written: quotes are characters like others.
            Format::Tsv => CsvParseOptions::default().with_separator(b'\t').with_quote_char(None),
            _ => CsvParseOptions::default(),
        };
        let options = CsvReadOptions::default().with_infer_schema_length(Some(0)).with_n_rows(n_rows).with_parse_options(parse);
        Ok(options.into_reader_with_file_handle(Cursor::new(bytes)).finish()?)
    }
}

#[cfg(test)]
mod tests {
    use polars::prelude::{Column, ParquetWriter};

    use super::*;
    use crate::experiment::yaml::from_value;

    fn check(dir: &Path, written: &str) -> Result<Vec<String>, String> {
        let written: spec::Prompts = from_value(serde_yaml::from_str(written).unwrap())?;
        resolve(&written, 4, false, dir).map(|(_, list)| list).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn tables_have_a_column_of_prompts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.csv", "id,caption,n\n1,\"a cat, \"\"sitting\"\"\",5\n2,007,6\n3,\" two\nlines \",7\n");
        write("a.tsv", "Prompt\tCategory\na \"big\" cat, asleep\tAnimals\nit's\tAbstract\n");
        write("a.txt", "one\n\n two \n");
        let texts = Column::new("caption".into(), ["a cat", "ein Hund", "猫"]);
        let mut table = DataFrame::new(3, vec![Column::new("id".into(), [1i64, 2, 3]), texts]).unwrap();
        ParquetWriter::new(std::fs::File::create(dir.path().join("a.parquet")).unwrap()).finish(&mut table).unwrap();

        let found = |written: &str| check(dir.path(), written).unwrap();
        assert_eq!(found("{file: a.csv, column: caption}"), ["a cat, \"sitting\"", "007", "two\nlines", "a cat, \"sitting\""]);
        assert_eq!(found("{file: a.tsv, column: Prompt}")[..2], ["a \"big\" cat, asleep", "it's"]);
        assert_eq!(found("{file: a.parquet, column: caption}"), ["a cat", "ein Hund", "猫", "a cat"]);
        assert_eq!(found("{file: a.txt}"), ["one", "two", "one", "two"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_columns_that_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.csv", b"id,caption\n1,cat\n2,\n");
        write("none.csv", b"id,caption\n");
        write("empty.csv", b"");
        write("a.txt", b"cat\n");
        write("no.txt", b"\xff\xfe");
        write("bad.parquet", b"no table");
        let mut table = DataFrame::new(1, vec![Column::new("id".into(), [1i64])]).unwrap();
        ParquetWriter::new(std::fs::File::create(dir.path().join("n.parquet")).unwrap()).finish(&mut table).unwrap();
        for (written, fragments) in [
            ("{file: a.csv}", &["a.csv", "expected `column`, one of id, caption"][..]),
            ("{file: a.csv, column: captoin}", &["a.csv", "no column `captoin`", "id, caption", "did you mean `caption`?"]),
            ("{file: a.csv, column: caption}", &["a.csv", "column caption", "row 2 has none"]),
            ("{file: none.csv, column: caption}", &["none.csv", "found no rows"]),
            ("{file: empty.csv, column: caption}", &["empty.csv"]),
            ("{file: n.parquet, column: id}", &["n.parquet", "column id", "expected text, found i64"]),
            ("{file: bad.parquet, column: id}", &["bad.parquet"]),
            ("{file: a.txt, column: id}", &["column: expected a table", "a.txt"]),
            ("{column: id}", &["column: expected a table"]),
            ("{file: no.txt}", &["no.txt", "UTF-8"]),
            ("{file: a.csv, column: id, seed: 3}", &["either source and seed, or file"]),
            ("{file: missing.csv, column: id}", &["cannot read", "missing.csv"]),
        ] {
            let message = check(dir.path(), written).unwrap_err();
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{written}: {message}");
        }
    }
}
