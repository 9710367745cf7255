//! Attention to the prompt that a run keeps, and which of its words are seen where.

use super::Pipeline;
use super::request::Request;
use crate::error::{Error, Result};
use crate::journey::KeptMaps;
use crate::site::SiteTable;
use crate::step::{Region, Step, Windows, Words};
use crate::text::Embedding;
use crate::unet::MapSum;
use candle_core::Tensor;
use std::collections::HashMap;

/// The maps of the stage that is made, and those of earlier ones by name.
#[derive(Default)]
pub(super) struct KeptAttention {
    /// Of each step, `(images, pixels, tokens)`.
    steps: MapSum,
    /// `(images, tokens, rows, columns)`.
    kept: HashMap<String, Tensor>,
    /// Of the texts that windows were told.
    embedded: HashMap<String, Embedding>,
}

impl KeptAttention {
    /// Adds the maps of one step, `(images, pixels, tokens)`.
    pub(super) fn add(&mut self, maps: Tensor) -> Result<()> {
        self.steps.add(maps)
    }

    /// Ends a stage of `latent` (height, width): its mean maps `(images, tokens, rows, columns)`, kept.
    pub(super) fn keep(&mut self, keeps: &KeptMaps, sites: &SiteTable, latent: (usize, usize)) -> Result<Option<Tensor>> {
        let Some(mean) = std::mem::take(&mut self.steps).mean()? else { return Ok(None) };
        let (rows, columns) = keeps.sites.first().map_or(latent, |&site| sites.attentions[site].size(latent));
        let (images, _, tokens) = mean.dims3()?;
        let maps = mean.transpose(1, 2)?.contiguous()?.reshape((images, tokens, rows, columns))?;
        self.kept.insert(keeps.name.clone(), maps.clone());
        Ok(Some(maps))
    }

    /// For each view of a step on latents of `latent` (height, width) whose windows are told words of their own: by window, the
    /// texts of every image.
    pub(super) fn texts_of_windows(
        &mut self,
        pipeline: &Pipeline,
        requests: &[&Request],
        step: &Step,
        latent: (usize, usize),
    ) -> Result<HashMap<usize, Vec<Vec<Embedding>>>> {
        let mut found = HashMap::new();
        for (v, view) in step.views.iter().enumerate() {
            let Region::Windows(windows) = &view.region else { continue };
            let Some(words) = &windows.words else { continue };
            let missing = || Error::method("", format!("refers to the attention `{}`, which no stage before kept", words.maps));
            let maps = self.kept.get(&words.maps).ok_or_else(missing)?.clone();
            let mut of_windows = vec![Vec::with_capacity(requests.len()); windows.corners.len()];
            for (i, request) in requests.iter().enumerate() {
                let pieces = pipeline.texts.tokenizer.pieces(&request.prompt)?;
                for (k, text) in texts(&maps.get(i)?, &pieces, words, windows, latent)?.into_iter().enumerate() {
                    of_windows[k].push(self.embedded(pipeline, text)?);
                }
            }
            found.insert(v, of_windows);
        }
        Ok(found)
    }

    fn embedded(&mut self, pipeline: &Pipeline, text: String) -> Result<Embedding> {
        if let Some(embedding) = self.embedded.get(&text) {
            return Ok(embedding.clone());
        }
        let embedding = pipeline.texts.embed(&text, false)?;
        self.embedded.insert(text, embedding.clone());
        Ok(embedding)
    }
}

/// The words that each window is told. `maps` are `(tokens, rows, columns)`, a framing token's first; `pieces` the prompt's tokens
/// without those.
fn texts(maps: &Tensor, pieces: &[String], words: &Words, windows: &Windows, latent: (usize, usize)) -> Result<Vec<String>> {
    let (_, rows, columns) = maps.dims3()?;
    let reach = (words.opening * rows as f64) as usize;
    let mut seen = vec![Vec::new(); windows.corners.len()];
    for (i, piece) in pieces.iter().enumerate() {
        let mask = opened(&above_mean(&maps.get(i + 1)?.flatten_all()?.to_vec1::<f32>()?), (rows, columns), reach);
        for (window, corner) in seen.iter_mut().zip(&windows.corners) {
            if covered(&mask, (rows, columns), *corner, windows.size, latent) >= words.threshold {
                window.push(piece.as_str());
            }
        }
    }
    // As many spaces as between words, whatever a piece was.
    Ok(seen.iter().map(|words| words.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}

fn above_mean(map: &[f32]) -> Vec<bool> {
    let mean = map.iter().map(|&v| f64::from(v)).sum::<f64>() / map.len() as f64;
    map.iter().map(|&v| f64::from(v) > mean).collect()
}

/// A morphological opening: a pixel stays if a square of `2 · reach + 1` pixels that holds it is full. What lies outside the map
/// counts as full.
fn opened(mask: &[bool], size: (usize, usize), reach: usize) -> Vec<bool> {
    around(&around(mask, size, reach, false), size, reach, true)
}

/// Spreads the pixels that are `what` over the squares around them, inside the map.
fn around(mask: &[bool], (rows, columns): (usize, usize), reach: usize, what: bool) -> Vec<bool> {
    let span = |at: usize, n: usize| at.saturating_sub(reach)..(at + reach + 1).min(n);
    let pixel = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        let near = span(row, rows).any(|y| span(column, columns).any(|x| mask[y * columns + x] == what));
        near == what
    };
    (0..rows * columns).map(pixel).collect()
}

/// The share of a window at `corner` (row, column) of latents that lies inside the mask, which spreads over all of them.
fn covered(mask: &[bool], (rows, columns): (usize, usize), corner: (i64, i64), window: (usize, usize), latent: (usize, usize)) -> f64 {
    let inside =
        |from: i64, size: usize, all: usize| from.clamp(0, all as i64) as usize..(from + size as i64).clamp(0, all as i64) as usize;
    let full = |y: usize| {
        let line = &mask[y * rows / latent.0 * columns..][..columns];
        inside(corner.1, window.1, latent.1).filter(|x| line[x * columns / latent.1]).count()
    };
    let n: usize = inside(corner.0, window.0, latent.0).map(full).sum();
    n as f64 / (window.0 * window.1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn mask(picture: &[&str]) -> Vec<bool> {
        picture.iter().flat_map(|line| line.chars().map(|c| c == '#')).collect()
    }

    /// OpenCV 5.0 says the same of this picture: `dilate(erode(mask, ones(3, 3)), ones(3, 3))`.
    #[test]
    fn an_opening_takes_what_no_square_fits_into() {
        let before = mask(&["##...#.", "##.###.", "#..####", "...###.", ".....##"]);
        let after = mask(&["##.....", "##.###.", "...###.", "...###.", "......."]);
        assert_eq!(opened(&before, (5, 7), 1), after);
        assert_eq!(opened(&before, (5, 7), 0), before);
    }

    #[test]
    fn windows_are_told_what_covers_them() {
        // A map of 2×2 pixels; "cat" is seen at the left, "hat" at the top, "a" everywhere but at the top left.
        let maps = [[9., 9., 9., 9.], [1., 2., 2., 2.], [3., 1., 3., 1.], [3., 3., 1., 1.]];
        let maps = Tensor::new(maps.map(|map: [f32; 4]| map).concat(), &Device::Cpu).unwrap().reshape((4, 2, 2)).unwrap();
        let pieces = ["a", "cat", "hat"].map(str::to_owned);
        let words = Words { maps: String::new(), threshold: 0.5, opening: 0.0 };
        let windows =
            Windows { size: (4, 4), corners: vec![(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (-2, 0)], told_corners: None, words: None };
        let found = texts(&maps, &pieces, &words, &windows, (8, 8)).unwrap();
        // The last window lies half outside.
        assert_eq!(found, ["cat hat", "a hat", "a cat", "a", "a cat hat", "cat hat"]);
        let most = Words { threshold: 0.51, ..words };
        assert_eq!(texts(&maps, &pieces, &most, &windows, (8, 8)).unwrap(), ["cat hat", "a hat", "a cat", "a", "a", ""]);
    }
}
