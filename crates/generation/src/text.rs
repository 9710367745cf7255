//! Prompt to embedding: CLIP's byte-level BPE and the CLIP text encoders of SD 1.x, SD 2.x and SDXL.

use crate::checkpoint::LoadOptions;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{LayerNorm, Linear};
use crate::weights::{Scope, Weights};
use candle_core::{D, Device, IndexOp, Tensor};
use scalebench_kernels as kernels;
use serde_json::{Value, json};
use std::path::Path;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence, replace::ReplacePattern};
use tokenizers::pre_tokenizers::{
    byte_level::ByteLevel,
    sequence::Sequence as PreSequence,
    split::{Split, SplitPattern},
};
use tokenizers::{AddedToken, Decoder, Tokenizer};

/// CLIP's word pattern.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A CLIP tokenizer: ids framed by start and end tokens and padded to a fixed length.
pub(crate) struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    pad: u32,
    /// Tokens per prompt, framing and padding included.
    length: usize,
}

impl ClipTokenizer {
    /// Reads `vocab.json`, `merges.txt` and `tokenizer_config.json` of a tokenizer folder.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
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
        tokenizer.with_normalizer(Some(Sequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()]))).map_err(wrong)?;
        let split = Split::new(SplitPattern::Regex(WORDS.into()), tokenizers::SplitDelimiterBehavior::Removed, true).map_err(wrong)?;
        let bytes = ByteLevel::new(false, true, false);
        tokenizer.with_pre_tokenizer(Some(PreSequence::new(vec![split.into(), bytes.into()])));
        let special = ["<|startoftext|>", "<|endoftext|>"].map(|t| AddedToken::from(t, true).normalized(true));
        tokenizer.add_special_tokens(special).map_err(wrong)?;
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
            Value::Null => end,
            other => return Err(Error::malformed(&file, format!("`pad_token` is {other}, expected a token"))),
        };
        // Old exports hold 10³⁰ where they mean that nobody has said it.
        let length = match &config["model_max_length"] {
            Value::Null => 77,
            Value::Number(n) => match n.as_f64() {
                Some(n) if n > 4096.0 => 77,
                Some(n) if n >= 2.0 && n.fract() == 0.0 => n as usize,
                _ => return Err(Error::malformed(&file, format!("`model_max_length` is {n}, expected an integer from 2 to 4096"))),
            },
            other => return Err(Error::malformed(&file, format!("`model_max_length` is {other}, expected an integer from 2 to 4096"))),
        };
        Ok(Self { tokenizer, start, end, pad, length })
    }

    fn tokenize(&self, text: &str) -> Result<tokenizers::Encoding> {
        self.tokenizer.encode(text, false).map_err(|e| Error::Request {
            key: "prompt",
            found: format!("`{text}`"),
            expected: format!("text that can be tokenized: {e}"),
        })
    }

    /// The end of `text` that does not fit into the text encoder's tokens; empty if all does.
    pub(crate) fn overflow<'a>(&self, text: &'a str) -> Result<&'a str> {
        let encoding = self.tokenize(text)?;
        let start = encoding.get_offsets().get(self.length - 2).map_or(text.len(), |(start, _)| *start);
        Ok(text.get(start..).unwrap_or_default())
    }

    /// Token ids of `text`, exactly as many as the text encoder has; what does not fit is cut.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenize(text)?;
        let mut ids = vec![self.start];
        ids.extend(encoding.get_ids().iter().take(self.length - 2));
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        Ok(ids)
    }

    /// What each token of `text` stands for, framing tokens and what does not fit left out.
    pub(crate) fn pieces(&self, text: &str) -> Result<Vec<String>> {
        let encoding = self.tokenize(text)?;
        let piece = |token: &String| {
            let token = token.strip_suffix("</w>").unwrap_or(token).to_owned();
            ByteLevel::default().decode_chain(vec![token]).map(|parts| parts.concat()).unwrap_or_default()
        };
        Ok(encoding.get_tokens().iter().take(self.length - 2).map(piece).collect())
    }
}

/// What a network is told about a text.
#[derive(Debug, Clone)]
pub(crate) struct Embedding {
    /// Per token: `(1, tokens, width)`.
    pub(crate) hidden: Tensor,
    /// SDXL: of the whole text, `(1, projection)`.
    pub(crate) pooled: Option<Tensor>,
}

/// The text side of a checkpoint: one encoder, or SDXL's two.
#[derive(Debug)]
pub(crate) struct TextEncoder {
    first: Clip,
    second: Option<Clip>,
    /// Whether an empty negative prompt is embedded as zeros (`force_zeros_for_empty_prompt`).
    zero_empty: bool,
}

impl TextEncoder {
    /// Reads `model_index.json`, `tokenizer*/` and `text_encoder*/` of a checkpoint folder.
    pub(crate) fn open(checkpoint: &Path, options: &LoadOptions) -> Result<Self> {
        let first = Clip::open(checkpoint, "tokenizer", "text_encoder", false, options)?;
        let two = checkpoint.join("text_encoder_2").is_dir();
        let second = if two { Some(Clip::open(checkpoint, "tokenizer_2", "text_encoder_2", true, options)?) } else { None };
        let zero_empty = two && Config::open(&checkpoint.join("model_index.json"))?.bool("force_zeros_for_empty_prompt", true)?;
        Ok(Self { first, second, zero_empty })
    }

    /// Channels of the embedding of a token.
    pub(crate) fn width(&self) -> usize {
        self.first.width + self.second.as_ref().map_or(0, |s| s.width)
    }

    /// Channels of the pooled embedding, if there is one.
    pub(crate) fn pooled_width(&self) -> Option<usize> {
        self.second.as_ref().and_then(|s| s.projection.as_ref()).map(|p| p.weight.outputs())
    }

    /// The prompt's embedding: final hidden states of SD 1.x and 2.x, penultimate ones of both
    /// encoders side by side for SDXL.
    pub(crate) fn embed(&self, text: &str) -> Result<Embedding> {
        let first = self.first.encode(text)?;
        let Some(second) = &self.second else { return Ok(Embedding { hidden: first.last, pooled: None }) };
        let second = second.encode(text)?;
        Ok(Embedding { hidden: Tensor::cat(&[first.penultimate, second.penultimate], D::Minus1)?, pooled: second.pooled })
    }

    /// The negative prompt's embedding.
    pub(crate) fn embed_negative(&self, text: &str) -> Result<Embedding> {
        let embedding = self.embed(text)?;
        if !(text.is_empty() && self.zero_empty) {
            return Ok(embedding);
        }
        let pooled = embedding.pooled.map(|p| p.zeros_like()).transpose()?;
        Ok(Embedding { hidden: embedding.hidden.zeros_like()?, pooled })
    }
}

/// Hidden states of one text, `(1, tokens, width)` each, on the CPU.
pub(crate) struct Encoded {
    /// After the last layer and the final norm.
    pub(crate) last: Tensor,
    /// Before the last layer, not normalised.
    pub(crate) penultimate: Tensor,
    /// `last` at the end-of-text token, projected: `(1, projection)`.
    pub(crate) pooled: Option<Tensor>,
}

/// One CLIP text encoder with its tokenizer.
pub(crate) struct Clip {
    tokenizer: ClipTokenizer,
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Option<Linear>,
    width: usize,
    /// The end-of-text token; `None` where the configuration has the 2 of old exports, which stands
    /// for the largest id of the text.
    end: Option<u32>,
    device: Device,
}

impl std::fmt::Debug for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clip").field("width", &self.width).field("layers", &self.layers.len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    quick: bool,
}

impl Clip {
    pub(crate) fn open(checkpoint: &Path, tokenizer: &str, encoder: &str, projected: bool, options: &LoadOptions) -> Result<Self> {
        let tokenizer = ClipTokenizer::open(&checkpoint.join(tokenizer))?;
        let folder = checkpoint.join(encoder);
        let file = folder.join("config.json");
        let mut config = Config::open(&file)?;
        let width = config.count("hidden_size", None)?;
        let positions = config.count("max_position_embeddings", Some(77))?;
        let heads = config.count("num_attention_heads", None)?;
        let inner = config.count("intermediate_size", None)?;
        let n_layers = config.layers("num_hidden_layers", None)?;
        let vocabulary = config.count("vocab_size", None)?;
        config.only("hidden_act", &[json!("quick_gelu"), json!("gelu")])?;
        config.only("layer_norm_eps", &[json!(1e-5)])?;
        let quick = config.string("hidden_act", "quick_gelu")? == "quick_gelu";
        let end = config.within("eos_token_id", Some(2), 0, vocabulary - 1)?;
        let wrong = |reason: String| Err(Error::malformed(&file, reason));
        if tokenizer.length > positions {
            let length = tokenizer.length;
            return wrong(format!("`max_position_embeddings` is {positions}, expected at least the tokenizer's {length}"));
        }
        if !width.is_multiple_of(heads) {
            return wrong(format!("`hidden_size` is {width}, expected a multiple of `num_attention_heads`, {heads}"));
        }
        if projected && end != 2 && end as u32 != tokenizer.end {
            return wrong(format!("`eos_token_id` is {end}, expected 2 or the tokenizer's {}", tokenizer.end));
        }
        if tokenizer.tokenizer.get_vocab_size(true) > vocabulary {
            let n = tokenizer.tokenizer.get_vocab_size(true);
            return wrong(format!("`vocab_size` is {vocabulary}, expected at least the tokenizer's {n}"));
        }

        let weights = Weights::open(&folder, "model", options)?;
        let root = weights.root();
        // transformers 5 writes without this level.
        let at = if root.has("text_model.final_layer_norm.weight") { root.pp("text_model") } else { root.clone() };
        let layer = |at: Scope<'_>| -> Result<Layer> {
            let linear = |name: &str| Linear::load(&at.pp("self_attn").pp(name), width, width);
            Ok(Layer {
                norm1: LayerNorm::load(&at.pp("layer_norm1"), width)?,
                q: linear("q_proj")?,
                k: linear("k_proj")?,
                v: linear("v_proj")?,
                out: linear("out_proj")?,
                norm2: LayerNorm::load(&at.pp("layer_norm2"), width)?,
                fc1: Linear::load(&at.pp("mlp.fc1"), width, inner)?,
                fc2: Linear::load(&at.pp("mlp.fc2"), inner, width)?,
                heads,
                quick,
            })
        };
        let projection = match projected {
            true => Some(Linear::load_no_bias(&root.pp("text_projection"), width, config.count("projection_dim", Some(512))?)?),
            false => None,
        };
        let clip = Self {
            tokens: at.get("embeddings.token_embedding.weight", &[vocabulary, width])?,
            positions: at.get("embeddings.position_embedding.weight", &[positions, width])?,
            layers: (0..n_layers).map(|i| layer(at.pp("encoder.layers").pp(i))).collect::<Result<_>>()?,
            final_norm: LayerNorm::load(&at.pp("final_layer_norm"), width)?,
            projection,
            width,
            end: (end != 2).then_some(end as u32),
            device: options.device.clone(),
            tokenizer,
        };
        weights.finish()?;
        Ok(clip)
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Encoded> {
        let ids = self.tokenizer.encode(text)?;
        let n = ids.len();
        let last_token = match self.end {
            Some(end) => ids.iter().position(|&id| id == end).unwrap_or(0),
            // The first of the largest, as argmax has it.
            None => (0..n).rev().max_by_key(|&i| ids[i]).unwrap_or(0),
        };
        let ids = Tensor::new(ids, &self.device)?;
        let mut x = self.tokens.index_select(&ids, 0)?.add(&self.positions.narrow(0, 0, n)?)?.unsqueeze(0)?;
        // Causal, and no other mask: Stable Diffusion attends to padding too.
        let mask: Vec<f32> = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (1, n, n), &self.device)?;
        let mut penultimate = x.clone();
        for layer in &self.layers {
            penultimate = x.clone();
            x = layer.forward(&x, &mask)?;
        }
        let last = self.final_norm.forward(&x)?;
        let pooled = match &self.projection {
            Some(projection) => Some(projection.forward(&last.i((.., last_token))?.contiguous()?)?),
            None => None,
        };
        let host = |x: &Tensor| x.to_device(&Device::Cpu);
        Ok(Encoded { last: host(&last)?, penultimate: host(&penultimate)?, pooled: pooled.as_ref().map(host).transpose()? })
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (_, n, width) = x.dims3()?;
        let h = self.norm1.forward(x)?;
        let split = |l: &Linear| -> Result<Tensor> {
            Ok(l.forward(&h)?.reshape((n, self.heads, width / self.heads))?.transpose(0, 1)?.contiguous()?)
        };
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        let scores = (split(&self.q)?.matmul(&split(&self.k)?.transpose(1, 2)?)? * scale)?.broadcast_add(mask)?;
        let mixed = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&split(&self.v)?)?;
        let x = (x + self.out.forward(&mixed.transpose(0, 1)?.reshape((1, n, width))?)?)?;
        let h = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let h = if self.quick { kernels::quick_gelu(&h)? } else { kernels::gelu(&h)? };
        Ok((x + self.fc2.forward(&h)?)?)
    }
}
