//! Prompt to embedding: CLIP's byte-level BPE and candle's CLIP text encoder.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::{Weights, weight_file};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence, replace::ReplacePattern};
use tokenizers::pre_tokenizers::{
    byte_level::ByteLevel,
    sequence::Sequence as PreSequence,
    split::{Split, SplitPattern},
};
use tokenizers::{AddedToken, Tokenizer};

/// CLIP's word pattern.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A CLIP tokenizer: ids framed by start and end tokens and padded to a fixed length.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    length: usize,
}

impl ClipTokenizer {
    /// Reads `vocab.json`, `merges.txt` and `tokenizer_config.json` of a tokenizer folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        for file in [&vocab, &merges] {
            std::fs::metadata(file).map_err(|source| Error::Io { file: file.clone(), source })?;
        }
        let wrong = |e: tokenizers::Error| Error::malformed(&vocab, format!("expected a CLIP vocabulary: {e}"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let bpe = BPE::from_file(&text(&vocab), &text(&merges))
            .unk_token("<|endoftext|>".into())
            .end_of_word_suffix("</w>".into())
            .build()
            .map_err(wrong)?;
        let mut tokenizer = Tokenizer::new(bpe);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(wrong)?;
        tokenizer.with_normalizer(Some(Sequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()])));
        let split = Split::new(SplitPattern::Regex(WORDS.into()), tokenizers::SplitDelimiterBehavior::Removed, true).map_err(wrong)?;
        let bytes = ByteLevel::new(false, true, false);
        tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![split.into(), bytes.into()])));
        let special = ["<|startoftext|>", "<|endoftext|>"].map(|t| AddedToken::from(t, true).normalized(true));
        tokenizer.add_special_tokens(&special);
        let id = |token: &str| {
            let missing = || Error::malformed(&vocab, format!("expected the token `{token}`"));
            tokenizer.token_to_id(token).ok_or_else(missing)
        };
        let (start, end) = (id("<|startoftext|>")?, id("<|endoftext|>")?);

        // The pad token is a string, or an object with the string inside; SD 2 pads with "!".
        let file = folder.join("tokenizer_config.json");
        let config: Value =
            serde_json::from_slice(&crate::error::read(&file)?).map_err(|e| Error::malformed(&file, format!("expected JSON: {e}")))?;
        let pad = match &config["pad_token"] {
            Value::String(s) => id(s)?,
            Value::Object(o) => id(o.get("content").and_then(Value::as_str).unwrap_or_default())?,
            _ => end,
        };
        let length = config["model_max_length"].as_u64().filter(|n| (2..=4096).contains(n)).unwrap_or(77) as usize;
        Ok(Self { tokenizer, start, end, pad, length })
    }

    /// Token ids of `text`, exactly [`length`](Self::length) of them; what does not fit is cut.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| Error::Request {
            key: "prompt",
            found: format!("`{text}`"),
            expected: format!("text that can be tokenized: {e}"),
        })?;
        let mut ids = vec![self.start];
        ids.extend(encoding.get_ids().iter().take(self.length - 2));
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        Ok(ids)
    }

    /// Tokens per prompt, framing and padding included.
    pub fn length(&self) -> usize {
        self.length
    }
}

/// A CLIP text encoder of the SD 1.x layout.
pub(crate) struct TextEncoder {
    tokenizer: ClipTokenizer,
    model: ClipTextTransformer,
    /// Channels of the embedding.
    pub(crate) width: usize,
}

impl TextEncoder {
    /// Reads `tokenizer/` and `text_encoder/` of a checkpoint folder.
    pub(crate) fn open(checkpoint: &Path) -> Result<Self> {
        let tokenizer = ClipTokenizer::open(&checkpoint.join("tokenizer"))?;
        let folder = checkpoint.join("text_encoder");
        let mut config = Config::open(&folder.join("config.json"))?;
        let c = ClipTextConfig {
            vocab_size: config.usize("vocab_size", None)?,
            embed_dim: config.usize("hidden_size", None)?,
            activation: Activation::QuickGelu,
            intermediate_size: config.usize("intermediate_size", None)?,
            max_position_embeddings: config.usize("max_position_embeddings", Some(77))?,
            pad_with: None,
            num_hidden_layers: config.usize("num_hidden_layers", None)?,
            num_attention_heads: config.usize("num_attention_heads", None)?,
            projection_dim: config.usize("projection_dim", Some(512))?,
        };
        config.only("hidden_act", &[json!("quick_gelu")])?;
        config.only("layer_norm_eps", &[json!(1e-5)])?;
        if tokenizer.length > c.max_position_embeddings {
            let reason = format!(
                "`max_position_embeddings` is {}, expected at least the tokenizer's {}",
                c.max_position_embeddings, tokenizer.length
            );
            return Err(Error::malformed(folder.join("config.json"), reason));
        }

        // candle's loader neither names files nor notices what it leaves behind, so the whole layout
        // is checked first and handed over as plain tensors.
        let file = weight_file(&folder, "model")?;
        let weights = Weights::open(&file)?;
        let mut tensors = std::collections::HashMap::new();
        for (name, shape) in layout(&c) {
            tensors.insert(name.clone(), weights.root().get(&name, &shape)?);
        }
        weights.finish()?;
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let model = ClipTextTransformer::new(vb.pp("text_model"), &c)?;
        Ok(Self { tokenizer, model, width: c.embed_dim })
    }

    /// The final hidden states of `text`, `(1, tokens, width)` f32.
    pub(crate) fn embed(&self, text: &str) -> Result<Tensor> {
        let ids = self.tokenizer.encode(text)?;
        let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        // No position is masked beyond the causal mask: SD attends to padding too.
        Ok(self.model.forward_with_mask(&ids, usize::MAX)?)
    }
}

/// Every tensor of the encoder and its shape.
fn layout(c: &ClipTextConfig) -> Vec<(String, Vec<usize>)> {
    let (d, f) = (c.embed_dim, c.intermediate_size);
    let mut all = vec![
        ("embeddings.token_embedding.weight".to_owned(), vec![c.vocab_size, d]),
        ("embeddings.position_embedding.weight".to_owned(), vec![c.max_position_embeddings, d]),
    ];
    let mut affine = |name: String, weight: Vec<usize>, bias: usize| {
        all.push((format!("{name}.weight"), weight));
        all.push((format!("{name}.bias"), vec![bias]));
    };
    for i in 0..c.num_hidden_layers {
        let layer = format!("encoder.layers.{i}");
        for norm in ["layer_norm1", "layer_norm2"] {
            affine(format!("{layer}.{norm}"), vec![d], d);
        }
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            affine(format!("{layer}.self_attn.{projection}"), vec![d, d], d);
        }
        affine(format!("{layer}.mlp.fc1"), vec![f, d], f);
        affine(format!("{layer}.mlp.fc2"), vec![d, f], d);
    }
    affine("final_layer_norm".to_owned(), vec![d], d);
    all.into_iter().map(|(name, shape)| (format!("text_model.{name}"), shape)).collect()
}
