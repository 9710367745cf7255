//! The text side of a checkpoint, and what of it the network is told.

use crate::checkpoint::LoadOptions;
use crate::error::Result;
use crate::step::Conditioning;
use crate::text::{ClipTokenizer, Embedding, TextEncoder};
use crate::unet::{SIZE_NUMBERS, Told as ToldBatch};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The text side: embeddings made ahead, and an encoder that is loaded when it is needed.
pub(super) struct Texts {
    pub(super) folder: PathBuf,
    pub(super) options: LoadOptions,
    pub(super) tokenizer: ClipTokenizer,
    pub(super) encoder: Mutex<Option<Arc<TextEncoder>>>,
    /// By text, and whether it is the negative prompt.
    pub(super) embedded: Mutex<HashMap<(String, bool), Embedding>>,
}

impl Texts {
    /// The text side of a checkpoint folder, whose `encoder` is loaded.
    pub(super) fn new(folder: &Path, options: &LoadOptions, encoder: TextEncoder) -> Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            options: options.clone(),
            tokenizer: ClipTokenizer::open(&folder.join("tokenizer"))?,
            encoder: Mutex::new(Some(Arc::new(encoder))),
            embedded: Mutex::default(),
        })
    }

    fn encoder(&self) -> Result<Arc<TextEncoder>> {
        let mut slot = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = &*slot {
            return Ok(encoder.clone());
        }
        let encoder = Arc::new(TextEncoder::open(&self.folder, &self.options)?);
        *slot = Some(encoder.clone());
        Ok(encoder)
    }

    pub(super) fn embed(&self, text: &str, negative: bool) -> Result<Embedding> {
        let embedded = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(embedding) = embedded.get(&(text.to_owned(), negative)) {
            return Ok(embedding.clone());
        }
        drop(embedded);
        let encoder = self.encoder()?;
        if negative { encoder.embed_negative(text) } else { encoder.embed(text) }
    }
}

/// What the network is told in a stage, whichever part of the latents it looks at.
pub(super) struct Told<'a> {
    pub(super) texts: &'a [Embedding],
    pub(super) empties: &'a [Embedding],
    /// By view and window: the texts of every image, where they are not the prompts.
    pub(super) of_windows: HashMap<usize, Vec<Vec<Embedding>>>,
    /// Image (height, width) in pixels, for SDXL.
    pub(super) size: Option<(f32, f32)>,
    /// The same of the stage before.
    pub(super) size_before: Option<(f32, f32)>,
    /// Pixels per latent.
    pub(super) factor: i64,
    /// Frames of a video, which are all told the same; 1 of images.
    pub(super) frames: usize,
}

/// A map that the network is shown.
#[derive(Clone, Copy, Default)]
pub(super) struct Place<'a> {
    /// Where it lies in the image (row, column), in latents.
    pub(super) corner: (i64, i64),
    /// What is told of it for every image, if not the prompts.
    pub(super) texts: Option<&'a [Embedding]>,
}

impl Told<'_> {
    /// For a batch of maps, all images of the first map (of videos all their frames) before those of the second, and all maps of the first conditioning before
    /// those of the second. `before`: of the stage before.
    pub(super) fn maps(&self, before: bool, conditionings: &[Conditioning], places: &[Place<'_>]) -> Result<ToldBatch> {
        let (mut rows, mut sizes) = (Vec::new(), Vec::new());
        let size = if before { self.size_before } else { self.size };
        for conditioning in conditionings {
            for Place { corner: (top, left), texts } in places {
                let embeddings = match conditioning {
                    Conditioning::Text => texts.unwrap_or(self.texts),
                    Conditioning::Empty => self.empties,
                };
                rows.extend(embeddings.iter().flat_map(|embedding| std::iter::repeat_n(embedding, self.frames)));
                let (height, width) = size.unwrap_or_default();
                let (top, left) = ((top * self.factor) as f32, (left * self.factor) as f32);
                sizes.extend([height, width, top, left, height, width].repeat(embeddings.len() * self.frames));
            }
        }
        let text = Tensor::cat(&rows.iter().map(|e| &e.hidden).collect::<Vec<_>>(), 0)?;
        if size.is_none() {
            return Ok(ToldBatch { text, added: None, class: None });
        }
        let pooled: Vec<&Tensor> = rows.iter().filter_map(|e| e.pooled.as_ref()).collect();
        let sizes = Tensor::from_vec(sizes, (rows.len(), SIZE_NUMBERS), &Device::Cpu)?;
        Ok(ToldBatch { text, added: Some((Tensor::cat(&pooled, 0)?, sizes)), class: None })
    }
}
