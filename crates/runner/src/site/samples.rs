//! Sample images as files of the site, each once: they are named by their content.

use std::collections::BTreeMap;
use std::io::Cursor;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use scalebench_metrics::Image;

use super::source::Source;
use crate::report::grid;

/// The files: relative path and content.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// Takes the images out of the pages and puts addresses of files in their place. What is no WebP becomes one.
pub(super) fn extract(sources: &mut [Source]) -> Result<Files> {
    let mut files = Files::new();
    for source in sources {
        for samples in &mut source.shown.samples {
            for (label, tile) in samples.rows.iter_mut().flat_map(|row| row.tiles.iter_mut().map(|tile| (&row.label, tile))) {
                let at = || format!("{}: {}: a sample of {label}", source.name, samples.title);
                let webp = as_webp(&tile.src).with_context(at)?;
                let path = format!("samples/{}.webp", &blake3::hash(&webp).to_hex()[..16]);
                files.insert(path.clone(), webp);
                tile.src = path;
            }
        }
    }
    Ok(files)
}

fn as_webp(src: &str) -> Result<Vec<u8>> {
    let (kind, data) = src.split_once(";base64,").context("expected an image in the page itself")?;
    let bytes = BASE64_STANDARD.decode(data)?;
    if kind == "data:image/webp" {
        return Ok(bytes);
    }
    grid::embedded(&Image::decode(Cursor::new(bytes), "an image of the page".as_ref())?)
}
