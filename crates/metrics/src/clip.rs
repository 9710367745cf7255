//! CLIP: features of images and of texts in one space, for the CLIP score and CMMD.
//!
//! [`Clip::load`] reads what transformers' `CLIPModel` saves: `openai/clip-vit-base-patch32`,
//! `-base-patch16`, `-large-patch14`, `-large-patch14-336` and others of that architecture. The towers are
//! candle-transformers', which has OpenAI's activation only: checkpoints with `hidden_act` `gelu` (most
//! of OpenCLIP's in this format) are refused, since features under the wrong activation look plausible.
//!
//! How an image gets to the network's size differs between metrics and is not part of the network:
//! [`preprocess`] for the CLIP score, [`preprocess_cmmd`] for CMMD.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Module, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};
use candle_transformers::models::clip::vision_model::{ClipVisionConfig, ClipVisionTransformer};
use rayon::prelude::*;
use scalebench_kernels::{LinearWeight, Precision, linear};
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreSequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::model_folder::{Section, Weights};
use crate::resize::{Filter, Raster, pillow_u8};
use crate::{Error, Image, Result};

/// Mean and standard deviation of the pixels CLIP was trained on, red first, for values in [0, 1].
const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const DEVIATION: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// CLIP's word pattern.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Both towers with their projections, on the CPU in `f32`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use scalebench_metrics::Clip;
/// // A tiny one on random weights: sides of 28 pixels, features of 24 numbers.
/// let clip = Clip::load("tests/data/networks/clip".as_ref())?;
/// let black = Tensor::zeros((2, 3, clip.side(), clip.side()), DType::F32, &Device::Cpu)?;
/// assert_eq!((clip.side(), clip.image_features(&black)?.dims()), (28, &[2, 24][..]));
/// assert!(clip.name().starts_with("clip/28x"));
/// # Ok::<(), scalebench_metrics::Error>(())
/// ```
pub struct Clip {
    vision: ClipVisionTransformer,
    visual_projection: LinearWeight,
    text: ClipTextTransformer,
    text_projection: LinearWeight,
    tokenizer: Option<Tokenizer>,
    folder: PathBuf,
    side: usize,
    patch: usize,
    dim: usize,
    /// Most tokens of a text, framing included.
    context: usize,
    /// The token whose state stands for the text; `None` where the configuration has the 2 of exports
    /// before transformers 4.31, which stands for the largest id of the text.
    end: Option<u32>,
    digest: String,
    device: Device,
}

impl std::fmt::Debug for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clip").field("name", &self.name()).field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Clip {
    /// Loads a folder with `config.json` and `model.safetensors`, or the latter in shards with
    /// `model.safetensors.index.json`; `f16` and `bf16` are cast to `f32`. For texts there must also
    /// be `tokenizer.json`, or `vocab.json` and `merges.txt`.
    ///
    /// Errors name the configuration's key or the tensor that is missing, of another shape or unknown.
    /// Example: [`Clip`].
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_on(folder, &Device::Cpu)
    }

    /// [`load`](Self::load), onto a device.
    pub(crate) fn load_on(folder: &Path, device: &Device) -> Result<Self> {
        let config = Section::open(folder)?;
        config.must_be("model_type", &"clip".into())?;
        // Where both are there, transformers goes by the first and takes its own defaults for the rest.
        let part = |old: &str, new: &str| config.section(if config.get(old).is_some() { old } else { new });
        let (text, vision) = (part("text_config_dict", "text_config")?, part("vision_config_dict", "vision_config")?);
        let dim = config.count("projection_dim", 512)?;
        let text_tower = Tower::read(&text, 512, 2048, 8)?;
        let vocabulary = text.count("vocab_size", 49408)?;
        let context = text.count("max_position_embeddings", 77)?;
        if context < 2 {
            return Err(text.wrong("max_position_embeddings", "at least 2"));
        }
        let end = match text.get("eos_token_id") {
            None => 49407,
            Some(id) => id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| text.wrong("eos_token_id", "a token"))?,
        };
        let end = (end != 2).then_some(end);
        let tokenizer = Tokenizer::open(folder)?;
        if let Some(tokenizer) = &tokenizer {
            if tokenizer.largest as usize >= vocabulary {
                return Err(text.wrong("vocab_size", &format!("above the tokenizer's largest token {}", tokenizer.largest)));
            }
            if end.is_some_and(|end| end != tokenizer.end) {
                return Err(text.wrong("eos_token_id", &format!("2 or the tokenizer's {}", tokenizer.end)));
            }
        }
        let vision_tower = Tower::read(&vision, 768, 3072, 12)?;
        vision.only("num_channels", &3.into())?;
        let (side, patch) = (vision.count("image_size", 224)?, vision.count("patch_size", 32)?);
        if patch > side {
            return Err(vision.wrong("patch_size", &format!("at most the image's {side}")));
        }
        let patches = (side / patch).pow(2);

        // Every tensor is asked for here: candle would make up a missing class embedding.
        let mut weights = Weights::open(folder)?.on(device);
        let mut tensors = HashMap::new();
        let mut take = |key: String, shape: &[usize]| -> Result<()> {
            let tensor = weights.take(&key, shape)?;
            tensors.insert(key, tensor);
            Ok(())
        };
        let width = text_tower.width;
        take("text_model.embeddings.token_embedding.weight".to_owned(), &[vocabulary, width])?;
        take("text_model.embeddings.position_embedding.weight".to_owned(), &[context, width])?;
        text_tower.take("text_model", &["final_layer_norm"], &mut take)?;
        let width = vision_tower.width;
        take("vision_model.embeddings.class_embedding".to_owned(), &[width])?;
        take("vision_model.embeddings.patch_embedding.weight".to_owned(), &[width, 3, patch, patch])?;
        take("vision_model.embeddings.position_embedding.weight".to_owned(), &[patches + 1, width])?;
        vision_tower.take("vision_model", &["pre_layrnorm", "post_layernorm"], &mut take)?;
        let mut projection = |key: &str, from: usize| Ok::<_, Error>(LinearWeight::new(&weights.take(key, &[dim, from])?, Precision::F32)?);
        let text_projection = projection("text_projection.weight", text_tower.width)?;
        let visual_projection = projection("visual_projection.weight", vision_tower.width)?;
        let digest = weights.digest().to_owned();
        // The temperature of training, and buffers that old versions wrote.
        weights.finish(|key| key == "logit_scale" || key.ends_with(".embeddings.position_ids"))?;

        let at = VarBuilder::from_tensors(tensors, DType::F32, device);
        let text = ClipTextConfig {
            vocab_size: vocabulary,
            embed_dim: text_tower.width,
            activation: Activation::QuickGelu,
            intermediate_size: text_tower.inner,
            max_position_embeddings: context,
            pad_with: None,
            num_hidden_layers: text_tower.layers,
            num_attention_heads: text_tower.heads,
            projection_dim: dim,
        };
        let vision = ClipVisionConfig {
            embed_dim: vision_tower.width,
            activation: Activation::QuickGelu,
            intermediate_size: vision_tower.inner,
            num_hidden_layers: vision_tower.layers,
            num_attention_heads: vision_tower.heads,
            projection_dim: dim,
            num_channels: 3,
            image_size: side,
            patch_size: patch,
        };
        Ok(Self {
            vision: ClipVisionTransformer::new(at.pp("vision_model"), &vision)?,
            visual_projection,
            text: ClipTextTransformer::new(at.pp("text_model"), &text)?,
            text_projection,
            tokenizer,
            folder: folder.to_owned(),
            side,
            patch,
            dim,
            context,
            end,
            digest,
            device: device.clone(),
        })
    }

    /// Side of the images it takes, in pixels.
    /// Example: [`Clip`].
    pub fn side(&self) -> usize {
        self.side
    }

    /// Values per feature.
    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    /// BLAKE3 of the weight files one after the other, in the order of their names; hexadecimal.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// The network in a word, for provenance: `clip/224x14/768` has side 224, patches of 14, 768 values.
    /// Example: [`Clip`].
    pub fn name(&self) -> String {
        format!("clip/{}x{}/{}", self.side, self.patch, self.dim)
    }

    /// Features of preprocessed images `(batch, 3, side, side)`, `f32`: `(batch, dim)`, projected and not
    /// normalised, as `CLIPModel.get_image_features`. Each image's are the same in any batch.
    /// Example: [`Clip`].
    pub fn image_features(&self, images: &Tensor) -> Result<Tensor> {
        let batch = match *images.dims() {
            [batch, 3, height, width] if batch > 0 && (height, width) == (self.side, self.side) => batch,
            _ => {
                let expected = format!("(batch, 3, {0}, {0})", self.side);
                return Err(Error::NetworkInput { network: "clip", expected, found: images.dims().to_vec() });
            }
        };
        let images = images.to_device(&self.device)?;
        let one = |i| Ok(linear(&self.vision.forward(&images.narrow(0, i, 1)?)?, &self.visual_projection, None)?);
        let features = (0..batch).map(one).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&features, 0)?.to_device(&Device::Cpu)?)
    }

    /// Features of texts: `(texts, dim)`, `f32`, projected and not normalised, as
    /// `CLIPModel.get_text_features`.
    ///
    /// Texts are cut to the network's length (77 tokens) with the end token kept, as transformers'
    /// tokenizer does under `truncation=True`. torchmetrics cuts the end token off, too, so that its
    /// scores of longer captions are others.
    pub(crate) fn text_features(&self, texts: &[&str]) -> Result<Tensor> {
        let Some(tokenizer) = &self.tokenizer else {
            let message = "texts need tokenizer.json, or vocab.json and merges.txt".to_owned();
            return Err(Error::Config { path: self.folder.clone(), message });
        };
        if texts.is_empty() {
            return Ok(Tensor::zeros((0, self.dim), DType::F32, &Device::Cpu)?);
        }
        // One by one and without padding: attention is causal, so padding behind the end changes nothing.
        let one = |text: &&str| {
            let ids = tokenizer.encode(text, self.context)?;
            let at = self.pooled(&ids);
            let ids = Tensor::new(ids, &self.device)?.unsqueeze(0)?;
            let states = self.text.forward_with_mask(&ids, usize::MAX)?;
            Ok(linear(&states.i((.., at))?, &self.text_projection, None)?)
        };
        let features = texts.par_iter().map(one).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&features, 0)?.to_device(&Device::Cpu)?)
    }

    /// The position whose state stands for the text.
    fn pooled(&self, ids: &[u32]) -> usize {
        let end = self.end.or_else(|| ids.iter().max().copied());
        ids.iter().position(|&id| Some(id) == end).unwrap_or(0)
    }
}

/// The sizes that both towers have.
struct Tower {
    width: usize,
    inner: usize,
    heads: usize,
    layers: usize,
}

impl Tower {
    /// Reads a part of the configuration; absent keys have transformers' defaults.
    fn read(config: &Section, width: usize, inner: usize, heads: usize) -> Result<Self> {
        config.only("hidden_act", &"quick_gelu".into())?;
        config.only("layer_norm_eps", &1e-5.into())?;
        let tower = Self {
            width: config.count("hidden_size", width)?,
            inner: config.count("intermediate_size", inner)?,
            heads: config.count("num_attention_heads", heads)?,
            layers: config.count("num_hidden_layers", 12)?,
        };
        if !tower.width.is_multiple_of(tower.heads) {
            return Err(config.wrong("num_attention_heads", &format!("a divisor of hidden_size {}", tower.width)));
        }
        Ok(tower)
    }

    /// Asks for the tensors of the layers and of the norms around them.
    fn take(&self, prefix: &str, norms: &[&str], take: &mut impl FnMut(String, &[usize]) -> Result<()>) -> Result<()> {
        let &Self { width, inner, layers, .. } = self;
        let norms = norms.iter().map(|norm| (format!("{prefix}.{norm}"), vec![width]));
        let linears = [
            ("layer_norm1", vec![width]),
            ("self_attn.q_proj", vec![width, width]),
            ("self_attn.k_proj", vec![width, width]),
            ("self_attn.v_proj", vec![width, width]),
            ("self_attn.out_proj", vec![width, width]),
            ("layer_norm2", vec![width]),
            ("mlp.fc1", vec![inner, width]),
            ("mlp.fc2", vec![width, inner]),
        ];
        let layer = |i| linears.iter().map(move |(name, shape)| (format!("{prefix}.encoder.layers.{i}.{name}"), shape.clone()));
        for (key, shape) in norms.chain((0..layers).flat_map(layer)) {
            take(format!("{key}.weight"), &shape)?;
            take(format!("{key}.bias"), &shape[..1])?;
        }
        Ok(())
    }
}

/// CLIP's byte-level BPE.
struct Tokenizer {
    bpe: tokenizers::Tokenizer,
    start: u32,
    end: u32,
    /// The largest token there is.
    largest: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else `vocab.json` and `merges.txt`; `None` if there is neither.
    fn open(folder: &Path) -> Result<Option<Self>> {
        let [whole, vocabulary, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| folder.join(name));
        let path = if whole.is_file() { &whole } else { &vocabulary };
        if !path.is_file() {
            return Ok(None);
        }
        let wrong = |e: tokenizers::Error| Error::Config { path: path.clone(), message: format!("not CLIP's vocabulary: {e}") };
        let mut bpe = if path == &whole {
            let mut bpe = tokenizers::Tokenizer::from_file(path).map_err(wrong)?;
            // What the file says about length is for batches; texts are framed and cut here.
            bpe.with_padding(None).with_truncation(None).map_err(wrong)?;
            bpe
        } else {
            let text = |path: &Path| path.to_string_lossy().into_owned();
            let model = BPE::from_file(&text(&vocabulary), &text(&merges)).unk_token(END.into()).end_of_word_suffix("</w>".into());
            let mut bpe = tokenizers::Tokenizer::new(model.build().map_err(wrong)?);
            let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(wrong)?;
            bpe.with_normalizer(Some(Sequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()]))).map_err(wrong)?;
            let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true).map_err(wrong)?;
            bpe.with_pre_tokenizer(Some(PreSequence::new(vec![words.into(), ByteLevel::new(false, true, false).into()])));
            bpe
        };
        let missing = |token: &str| Error::Config { path: path.clone(), message: format!("not CLIP's vocabulary: no {token}") };
        let id = |bpe: &tokenizers::Tokenizer, token: &str| bpe.token_to_id(token).ok_or_else(|| missing(token));
        // Adding tokens gives unknown ones new ids, so they are looked for before.
        let (start, end) = (id(&bpe, START)?, id(&bpe, END)?);
        bpe.add_special_tokens([START, END].map(|token| AddedToken::from(token, true).normalized(true))).map_err(wrong)?;
        let largest = bpe.get_vocab(true).into_values().max().unwrap_or(end);
        Ok(Some(Self { bpe, start, end, largest }))
    }

    /// Tokens of a text between start and end, at most `length` of them with both.
    fn encode(&self, text: &str, length: usize) -> Result<Vec<u32>> {
        let tokenize = |e: tokenizers::Error| Error::Tokenize { text: text.to_owned(), message: e.to_string() };
        let encoding = self.bpe.encode(text, false).map_err(tokenize)?;
        let mut ids = vec![self.start];
        ids.extend(encoding.get_ids().iter().take(length.saturating_sub(2)));
        ids.push(self.end);
        Ok(ids)
    }
}

/// CLIP scores: max(100 cos, 0) of row i of `images` and row i of `texts`, both `(pairs, dim)` `f32`.
///
/// The score of a set is their mean, on 0 to 100. This is the formula that torchmetrics documents; its
/// code takes the maximum after the mean, which is the same unless a pair points apart. A feature that
/// is zero has no direction: its score is NaN, as there.
pub(crate) fn clip_score(images: &Tensor, texts: &Tensor) -> Result<Vec<f64>> {
    let rows = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec2::<f64>();
    if images.dims() != texts.dims() || images.dims().len() != 2 {
        return Err(Error::FeaturePairs { images: images.dims().to_vec(), texts: texts.dims().to_vec() });
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let score = |(a, b): (&Vec<f64>, &Vec<f64>)| {
        let score = 100.0 * dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        // Not `max`, which would hide a NaN.
        if score < 0.0 { 0.0 } else { score }
    };
    Ok(rows(images)?.iter().zip(&rows(texts)?).map(score).collect())
}

/// CLIP's own preprocessing, as transformers' `CLIPImageProcessor` on Pillow has it: the shorter side to
/// `side` by bicubic on 8 bits, the square in the centre, [0, 1], CLIP's mean and deviation.
///
/// Returns planes `(3, side, side)`, red first. The sides of images that are not square are lost.
pub(crate) fn preprocess(image: &Image, side: usize) -> Result<Vec<f32>> {
    let short = image.width.min(image.height);
    // transformers truncates the longer side, it does not round it.
    let scaled = |length: usize| side * length / short.max(1);
    let resized = resize(image, scaled(image.width), scaled(image.height))?;
    let (left, top) = ((resized.width - side) / 2, (resized.height - side) / 2);
    Ok(normalised(&resized.crop(left, top, side)))
}

/// CMMD's preprocessing, as its authors' loader has it: the square in the centre, then bicubic on 8 bits
/// to `side`, [0, 1], CLIP's mean and deviation.
///
/// Returns planes `(3, side, side)`, red first.
pub(crate) fn preprocess_cmmd(image: &Image, side: usize) -> Result<Vec<f32>> {
    let short = image.width.min(image.height);
    let (left, top) = ((image.width - short) / 2, (image.height - short) / 2);
    Ok(normalised(&resize(&image.crop(left, top, short), side, side)?))
}

fn resize(image: &Image, width: usize, height: usize) -> Result<Image> {
    let raster = pillow_u8(&Raster::from(image), width, height, Filter::Bicubic)?;
    Image::new(width, height, raster.pixels.into_flattened())
}

fn normalised(image: &Image) -> Vec<f32> {
    let plane = |c: usize| {
        let value = move |v: &u8| ((f64::from(*v) / 255.0) as f32 - MEAN[c]) / DEVIATION[c];
        image.rgb.iter().skip(c).step_by(3).map(value)
    };
    (0..3).flat_map(plane).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{assert_near, formula_image, json, max_difference, network_folder, tensors};

    /// The two stored networks: end token by largest id, files on their own, `f32`; and end token by
    /// id, shards, `tokenizer.json`, `bf16`.
    const NETWORKS: [&str; 2] = ["clip", "clip-sharded"];

    fn inputs(clip: &Clip) -> Tensor {
        let images = [formula_image(2, 96, 128), formula_image(5, 61, 37)];
        let planes = images.iter().flat_map(|image| preprocess(image, clip.side()).unwrap()).collect();
        Tensor::from_vec(planes, (2, 3, clip.side(), clip.side()), &Device::Cpu).unwrap()
    }

    #[test]
    fn features_equal_transformers() {
        let references = tensors("networks/goldens.safetensors");
        let texts = json("networks/texts.json");
        for name in NETWORKS {
            let clip = Clip::load(&network_folder(name)).unwrap();
            let by_image = clip.image_features(&inputs(&clip)).unwrap();
            assert_near(&format!("{name} images"), &by_image, &references[&format!("{name}.image")], 1e-5);
            let texts: Vec<String> = serde_json::from_value(texts[name]["texts"].clone()).unwrap();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let by_text = clip.text_features(&texts).unwrap();
            assert_near(&format!("{name} texts"), &by_text, &references[&format!("{name}.text")], 1e-5);
            // The stored cosines have both signs.
            let scores = clip_score(&by_image, &by_text.narrow(0, 0, 2).unwrap()).unwrap();
            for (score, cosine) in scores.iter().zip(&references[&format!("{name}.cosine")].1) {
                assert!((score - f64::from(cosine.max(0.0))).abs() < 1e-4, "{score} {cosine}");
            }
        }
    }

    #[test]
    fn tokens_equal_transformers() {
        let texts = json("networks/texts.json");
        for name in NETWORKS {
            let tokenizer = Tokenizer::open(&network_folder(name)).unwrap().unwrap();
            let expected: Vec<Vec<u32>> = serde_json::from_value(texts[name]["ids"].clone()).unwrap();
            let lengths: Vec<usize> = expected.iter().map(Vec::len).collect();
            assert!(lengths.contains(&77) && lengths.contains(&2), "{lengths:?}");
            for (text, expected) in texts[name]["texts"].as_array().unwrap().iter().zip(expected) {
                assert_eq!(tokenizer.encode(text.as_str().unwrap(), 77).unwrap(), expected, "{text}");
            }
        }
    }

    #[test]
    fn preprocessing_equals_the_tools() {
        let mut seen = 0;
        for (key, (shape, expected)) in tensors("networks/goldens.safetensors") {
            let Some((kind, rest)) = key.split_once('.').filter(|(kind, _)| kind.starts_with("clip3") || kind.starts_with("cmmd")) else {
                continue;
            };
            let numbers: Vec<usize> = rest.split(['.', 'x']).map(|n| n.parse().unwrap()).collect();
            let image = formula_image(numbers[0] as u64, numbers[1], numbers[2]);
            let side: usize = kind[4..].parse().unwrap();
            assert_eq!(shape, [3, side, side]);
            let ours = if kind.starts_with("clip") { preprocess(&image, side) } else { preprocess_cmmd(&image, side) };
            let difference = max_difference(&ours.unwrap(), &expected);
            assert!(difference <= 1e-6, "{key}: {difference}");
            seen += 1;
        }
        assert_eq!(seen, 24);
    }

    #[test]
    fn an_image_has_the_same_features_in_any_batch() {
        let clip = Clip::load(&network_folder("clip")).unwrap();
        let both = inputs(&clip);
        let together = clip.image_features(&both).unwrap().i(1).unwrap().to_vec1::<f32>().unwrap();
        let alone = clip.image_features(&both.narrow(0, 1, 1).unwrap()).unwrap().i(0).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(together, alone);
        assert_eq!(clip.text_features(&[]).unwrap().dims(), [0, 24]);
    }

    #[test]
    fn empty_sides_are_refused() {
        let empty = Image { width: 0, height: 4, rgb: vec![] };
        for image in [&empty, &formula_image(1, 4, 4)] {
            for preprocess in [preprocess, preprocess_cmmd] {
                assert!(matches!(preprocess(image, 0), Err(Error::Tensor(_))));
            }
        }
        assert!(matches!(preprocess(&empty, 8), Err(Error::Tensor(_))));
    }

    #[test]
    fn scores_are_cosines_above_zero() {
        let rows = |values: &[f32]| Tensor::from_slice(values, (values.len() / 2, 2), &Device::Cpu).unwrap();
        let scores = clip_score(&rows(&[3.0, 0.0, 1.0, 1.0, 1.0, 0.0]), &rows(&[0.5, 0.0, 0.0, 2.0, -1.0, 0.1])).unwrap();
        assert!((scores[0] - 100.0).abs() < 1e-9 && (scores[1] - 50.0 * 2f64.sqrt()).abs() < 1e-9, "{scores:?}");
        assert_eq!(scores[2], 0.0);
        assert!(clip_score(&rows(&[0.0, 0.0]), &rows(&[1.0, 0.0])).unwrap()[0].is_nan());
        assert!(matches!(clip_score(&rows(&[1.0, 0.0]), &rows(&[1.0; 4])), Err(Error::FeaturePairs { .. })));
    }

    #[test]
    fn names_are_for_provenance() {
        let clip = Clip::load(&network_folder("clip")).unwrap();
        assert_eq!((clip.name().as_str(), clip.side(), clip.dim()), ("clip/28x7/24", 28, 24));
        let file = std::fs::read(network_folder("clip").join("model.safetensors")).unwrap();
        assert_eq!(clip.digest(), blake3::hash(&file).to_hex().as_str());
        let wrong = clip.image_features(&Tensor::zeros((1, 3, 28, 14), DType::F32, &Device::Cpu).unwrap()).unwrap_err();
        assert!(wrong.to_string().contains("(batch, 3, 28, 28)"), "{wrong}");
    }

    /// Every edit of a good folder is refused with a message that names what was edited.
    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        type Edit<'a> = &'a dyn Fn(&mut serde_json::Value);
        let source = network_folder("clip");
        let config = std::fs::read_to_string(source.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["model.safetensors", "vocab.json", "merges.txt"] {
            std::fs::copy(source.join(name), dir.path().join(name)).unwrap();
        }
        let with = |edit: Edit<'_>| {
            let mut config = config.clone();
            edit(&mut config);
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            Clip::load(dir.path())
        };
        with(&|_| {}).unwrap();
        let edits: [(Edit<'_>, &str); 11] = [
            (&|c| c["model_type"] = "siglip".into(), "`model_type` should be \"clip\""),
            (&|c| c["text_config"]["hidden_act"] = "gelu".into(), "`text_config.hidden_act` should be \"quick_gelu\", found \"gelu\""),
            (&|c| c["vision_config"]["hidden_act"] = "gelu".into(), "`vision_config.hidden_act`"),
            (&|c| c["vision_config"]["layer_norm_eps"] = 1e-6.into(), "`vision_config.layer_norm_eps`"),
            (&|c| c["text_config"]["num_attention_heads"] = 3.into(), "`text_config.num_attention_heads`"),
            (&|c| c["text_config"]["eos_token_id"] = 49407.into(), "`text_config.eos_token_id`"),
            (&|c| c["text_config"]["vocab_size"] = 100.into(), "`text_config.vocab_size`"),
            (&|c| c["vision_config"]["patch_size"] = 14.into(), "tensor vision_model.embeddings.patch_embedding.weight should be"),
            (&|c| c["vision_config"]["num_hidden_layers"] = 4.into(), "no tensor vision_model.encoder.layers.3.layer_norm1.weight"),
            (&|c| c["text_config"]["num_hidden_layers"] = 1.into(), "tensor text_model.encoder.layers.1"),
            // An old export whose second description counts, defaults included.
            (&|c| c["vision_config_dict"] = serde_json::json!({"image_size": 28, "patch_size": 7}), "[768]"),
        ];
        for (edit, expected) in edits {
            let message = with(edit).unwrap_err().to_string();
            assert!(message.contains(expected), "{message} lacks {expected}");
        }
        for name in ["vocab.json", "merges.txt"] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        let message = with(&|_| {}).unwrap().text_features(&["a"]).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
    }
}
