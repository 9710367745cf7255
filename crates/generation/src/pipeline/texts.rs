//! The text side of a checkpoint.

use crate::checkpoint::LoadOptions;
use crate::error::Result;
use crate::text::{ClipTokenizer, Embedding, TextEncoder};
use std::collections::HashMap;
use std::path::PathBuf;
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
