//! Images in a column of a Parquet file: the bytes of an image file in each row, as img2dataset writes them, or a structure of such bytes
//! and a path, as Hugging Face's `datasets` does.

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use polars::prelude::{ArrowDataType, BinaryChunked, DataType, ParquetReader, SerReader};
use scalebench_metrics::{Error, Image, ImageSet, Sample};

use crate::experiment::yaml::ensure_one_of;

/// Rows that are read together, and held until others are asked for.
const ROWS: usize = 128;

/// Columns that hold the images where nothing is said and several could.
const USUAL: [&str; 6] = ["image", "jpg", "png", "webp", "jpeg", "bytes"];

/// The field of a structure that holds an image file; the other, `path`, is where the file was.
const FIELD: &str = "bytes";

/// Whether a column's type can hold image files.
fn holds_files(dtype: &ArrowDataType) -> bool {
    let bytes = |dtype: &ArrowDataType| matches!(dtype, ArrowDataType::Binary | ArrowDataType::LargeBinary | ArrowDataType::BinaryView);
    match dtype {
        ArrowDataType::Struct(fields) => fields.iter().any(|field| field.name == FIELD && bytes(field.dtype())),
        dtype => bytes(dtype),
    }
}

/// The images of one file, in the order of its rows.
#[derive(Debug)]
struct ImageTable {
    path: PathBuf,
    column: String,
    names: Vec<String>,
    /// Number of the rows in memory, and their bytes.
    held: Mutex<Option<(usize, BinaryChunked)>>,
}

/// Whether a path is a table of images.
pub(crate) fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
}

/// All images under a path, in the order of [`Sample::all`], or of a table's rows.
pub(crate) fn all(path: &Path) -> Result<Vec<Sample>> {
    if is_table(path) { open(path, None) } else { Ok(Sample::all(path)?) }
}

/// The images of a table's column; without a name, of the one that holds bytes.
pub(crate) fn open(path: &Path, column: Option<&str>) -> Result<Vec<Sample>> {
    let shown = || path.display().to_string();
    let reader =
        || -> Result<ParquetReader<File>> { Ok(ParquetReader::new(File::open(path).with_context(|| format!("cannot read {}", shown()))?)) };
    let schema = reader()?.schema().with_context(shown)?;
    let names: Vec<&str> = schema.iter_names().map(|name| name.as_str()).collect();
    let bytes: Vec<&str> = schema.iter().filter(|(_, field)| holds_files(field.dtype())).map(|(name, _)| name.as_str()).collect();
    let column = match column {
        Some(column) => {
            ensure_one_of("column", column, &names).with_context(shown)?;
            let found = || schema.get(column).map(|field| field.dtype());
            ensure!(bytes.contains(&column), "{}: column {column}: expected the bytes of image files, found {:?}", shown(), found());
            column.to_owned()
        }
        None => match (bytes.as_slice(), USUAL.into_iter().find(|name| bytes.contains(name))) {
            ([only], _) => (*only).to_owned(),
            (_, Some(usual)) => usual.to_owned(),
            ([], None) => bail!("{}: expected a column with the bytes of image files, found {}", shown(), names.join(", ")),
            (several, None) => bail!("{}: expected `column`, one of {}", shown(), several.join(", ")),
        },
    };
    let n = reader()?.num_rows().with_context(shown)?;
    ensure!(n > 0, "{}: expected an image in each row, found no rows", shown());
    let names = (0..n).map(|i| format!("{i:06}")).collect();
    Ok(Sample::set(Arc::new(ImageTable { path: path.to_owned(), column, names, held: Mutex::new(None) })))
}

impl ImageTable {
    /// The bytes of a row; none if it is empty.
    fn bytes(&self, row: usize) -> Result<Option<Vec<u8>>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let part = row / ROWS;
        if held.as_ref().is_none_or(|(number, _)| *number != part) {
            // What was held goes first: two parts at a time would be twice the memory.
            *held = None;
            let reader = ParquetReader::new(File::open(&self.path)?).with_columns(Some(vec![self.column.clone()]));
            let rows = reader.with_slice(Some((part * ROWS, ROWS))).finish()?;
            let column = rows.column(&self.column)?;
            let bytes = match column.dtype() {
                DataType::Struct(_) => column.struct_()?.field_by_name(FIELD)?.cast(&DataType::Binary)?,
                _ => column.cast(&DataType::Binary)?.take_materialized_series(),
            };
            *held = Some((part, bytes.binary()?.clone()));
        }
        Ok(held.as_ref().and_then(|(_, bytes)| bytes.get(row % ROWS)).map(<[u8]>::to_vec))
    }
}

impl ImageSet for ImageTable {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn name(&self, place: usize) -> &str {
        &self.names[place]
    }

    fn image(&self, place: usize) -> scalebench_metrics::Result<Image> {
        let path = self.path.join(format!("row {}", place + 1));
        match self.bytes(place) {
            Ok(Some(bytes)) => Image::decode(Cursor::new(bytes), &path),
            Ok(None) => Err(Error::Decode { path, message: format!("column {} is empty here", self.column) }),
            Err(error) => Err(Error::Archive { path: self.path.clone(), message: format!("{error:#}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use polars::prelude::{Column, DataFrame, IntoColumn, IntoSeries, NamedFrom, ParquetWriter, Series, StructChunked};

    use super::*;

    fn png(value: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 4, 3);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.write_header().unwrap().write_image_data(&[value; 12]).unwrap();
        bytes
    }

    #[test]
    fn rows_are_images_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("photos.parquet");
        let files: Vec<Option<Vec<u8>>> =
            (0..300).map(|i| (i != 299).then(|| if i == 7 { b"no image".to_vec() } else { png(i as u8) })).collect();
        let ids: Vec<i64> = (0..300).collect();
        let columns =
            vec![Column::new("key".into(), ids), Column::new("jpg".into(), files), Column::new("mask".into(), vec![b"x".to_vec(); 300])];
        let mut table = DataFrame::new(300, columns).unwrap();
        ParquetWriter::new(File::create(&path).unwrap()).with_row_group_size(Some(50)).finish(&mut table).unwrap();
        for samples in [all(&path).unwrap(), open(&path, Some("jpg")).unwrap()] {
            assert_eq!((samples.len(), samples[130].name.as_str(), samples[130].group), (300, "000130", 130));
            for i in [0usize, 255, 127, 128, 129, 298, 3] {
                assert_eq!(samples[i].decode().unwrap().rgb, [i as u8; 36], "{i}");
            }
            let message = samples[7].decode().unwrap_err().to_string();
            assert!(message.contains("photos.parquet") && message.contains("row 8"), "{message}");
            assert!(samples[299].decode().unwrap_err().to_string().contains("column jpg is empty here"));
        }
        for (column, fragments) in
            [(Some("jgp"), &["no column `jgp`", "did you mean `jpg`?"][..]), (Some("key"), &["column key", "bytes of image files"])]
        {
            let message = format!("{:#}", open(&path, column).unwrap_err());
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{message}");
        }
        std::fs::write(&path, "no table").unwrap();
        assert!(format!("{:#}", all(&path).unwrap_err()).contains("photos.parquet"));
    }
    #[test]
    fn a_hub_dataset_keeps_its_files_in_a_structure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train-00000-of-00001.parquet");
        let files: Vec<Option<Vec<u8>>> = vec![Some(png(3)), None, Some(png(5))];
        let fields = [Series::new("bytes".into(), files), Series::new("path".into(), ["a.png", "b.png", "c.png"])];
        let image = StructChunked::from_series("image".into(), 3, fields.iter()).unwrap().into_series().into_column();
        let mut table = DataFrame::new(3, vec![image, Column::new("label".into(), [0i64, 1, 2])]).unwrap();
        ParquetWriter::new(File::create(&path).unwrap()).finish(&mut table).unwrap();
        let samples = all(&path).unwrap();
        for (row, value) in [(0, 3), (2, 5)] {
            assert_eq!(samples[row].decode().unwrap().rgb, [value; 36]);
        }
        assert!(samples[1].decode().unwrap_err().to_string().contains("column image is empty here"));
    }
}
