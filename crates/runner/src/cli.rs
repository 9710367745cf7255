//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use scalebench_generation::{DeviceId, Dtype, Sampler, SizeConditioning, Spacing, VaeDecode};
use scalebench_metrics::{Crops, KidOptions, Metric, Position, Profile, Scales, Tap};

use crate::compare::judge::Clock;
use crate::host::device::Devices;
use crate::run::progress::Log;
use crate::run::shard::Shard;
use crate::run::slurm::Resources;

/// Evaluates tuning-free methods that sample diffusion models above their training resolution.
#[derive(Debug, Parser)]
#[command(version = env!("SCALEBENCH_VERSION"), max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an experiment: images, features, scores, tables, charts, report
    Sweep(Sweep),
    /// Compare two runs of one experiment: what got better, worse or slower
    Compare(Compare),
    /// Run an experiment, compare it with the last accepted run, and keep a history
    Nightly(Nightly),
    /// Say how far a run is, while it goes on in another process or on another node
    Status(Status),
    /// Run an experiment on a cluster: an array of shards, and a job that merges them
    Submit(Submit),
    /// List what another program has to make for its images to stand in an experiment's table
    Jobs(Jobs),
    /// Make one image
    Generate(Generate),
    /// Write a run's sample grid, or two methods' images side by side for a study that does not say whose is whose
    Grid(Grid),
    /// Turn the choices of such a study into a win rate with an exact interval
    Votes(Votes),
    /// Extract features of a folder of images
    Features(Features),
    /// Compare two sets of images
    Score(Box<Score>),
    /// Mean and covariance of a set of images, for FID against it
    Stats(Stats),
    /// List the built-in protocols, or print one
    Protocols(Protocols),
    /// Solve for the transform that disperses a small convolution kernel into a large one
    Disperse(Disperse),
    /// Rebuild the report of a finished run from its files
    Report(Report),
    /// Check that a finished run is whole: images, manifests, features and results against their digests
    Verify(Verify),
    /// Join the results of finished runs of one protocol into one table
    Results(Results),
    /// Make a static site of finished runs: leaderboards, a page a method, comparisons, costs
    Site(Site),
    /// Write out what travels in this program: the pocket checkpoint, its upscaler, its Inception and the experiments on it
    Unpack(Unpack),
    /// List the built-in methods
    #[command(after_help = METHODS_HELP)]
    Methods,
    /// Print the JSON Schema of experiment files, for editors
    #[command(after_help = SCHEMA_HELP)]
    Schema,
    /// Describe checkpoints, or list the known model families
    Models(Models),
    /// Write images of the embedded emoji set
    Dataset(Dataset),
    /// Pass a folder of images through a checkpoint's autoencoder: what latents lose
    Reconstruct(Reconstruct),
    /// Work on files with the weights of feature networks
    Weights(Weights),
    /// Time parts of the program on random weights
    Bench(Bench),
    /// Print a script that completes this program's commands and options in a shell
    Completions(Completions),
    /// Print the manual page, or write those of all commands
    Man(Man),
}

const METHODS_HELP: &str = "\
Example: begin a method of one's own from one of these; experiments/README.md has its keys
  scalebench methods
  cp experiments/methods/redilation.yaml experiments/methods/mine.yaml";

const SCHEMA_HELP: &str = "\
An editor with a YAML language server completes and checks an experiment file whose first line is
  # yaml-language-server: $schema=schema.json

Example: for files that lie elsewhere than in experiments/, which has its own
  scalebench schema > schema.json";

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 done, 2 failed, 75 told to stop by SIGTERM: the images in hand were finished and written, and the same
command goes on. SIGKILL loses the images in hand, no more.

Example: two processes on one machine, then the results
  scalebench sweep experiments/quick.yaml --shard 0/2 --images-only &
  scalebench sweep experiments/quick.yaml --shard 1/2 --images-only; wait
  scalebench sweep experiments/quick.yaml
Example: what was made, as it is made
  scalebench sweep experiments/quick.yaml --log json 2>&1 >/dev/null | jq -c 'select(.event == \"image\")'")]
pub(crate) struct Sweep {
    /// The experiment file, see experiments/README.md; or the name of a built-in one: emoji, nightly, pocket, quick, repetition, superres, video
    pub(crate) experiment: PathBuf,
    /// Run directory [default: runs/<name of the experiment file>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Make only the images whose index leaves the remainder I when divided by N
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    pub(crate) shard: Shard,
    /// Leave scores, tables and report to a later sweep, even if all images are there
    #[arg(long)]
    pub(crate) images_only: bool,
    /// Replace a value of the experiment file, for example images=4 or sampler.steps=10
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Precision of all models: f32, bf16 or f16 [default: what the experiment file says]
    #[arg(long, value_name = "DTYPE")]
    pub(crate) dtype: Option<Dtype>,
    #[command(flatten)]
    pub(crate) on: OnDevices,
    /// What stderr says: text for people, or json: one object a line (started, image, cell, features, scores, finished,
    /// stopped, note, warning, error)
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    pub(crate) log: Log,
    /// Print for every cell its images, steps, U-Net passes, operations, estimated time and peak memory, and write nothing.
    /// A few steps of every image size are timed for it. What is not at hand is counted without: nothing is downloaded
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the costs of a dry run as one JSON object
    #[arg(long, requires = "dry_run")]
    pub(crate) json: bool,
}

/// Where one network runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct OnDevice {
    /// Where networks run: cpu, cuda or cuda:K (a build with CUDA: scripts/build_cuda.sh)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceId,
}

/// Where a sweep runs.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OnDevices {
    /// Where networks run: cpu, cuda, cuda:K, or cuda:all for all GPUs of this machine, with a process for each (a build with
    /// CUDA: scripts/build_cuda.sh)
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Devices,
    /// Images that are made as one batch; they are the same in any number [default: on a CPU one at a time on each
    /// thread while they are small, else 1 on all; on a GPU 8 of 512x512 pixels and fewer of larger ones]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) batch_size: Option<u16>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Writes DIR/slurm/shards.sbatch and DIR/slurm/merge.sbatch and submits both: an array whose tasks make one shard each, all in
DIR on the shared file system, and a job that waits for all of them (afterok) and makes scores, tables and report. Logs are
beside the scripts.

A task that nears its time limit gets SIGTERM, finishes its image, exits with 75 and queues itself again, as often as it
takes; one that is preempted or loses its node is queued again by Slurm. One that is cancelled (scancel) stays so, and the merge
then waits for nothing: cancel it too. Should a task fail or be cancelled, submit again: what was made is kept.

Other options of sbatch come from its environment: SBATCH_ACCOUNT, SBATCH_QOS, SBATCH_CONSTRAINT, ...

Example: eight shards of at most four hours at a time
  scalebench submit experiments/emoji.yaml --engine slurm --partition cpu --array 8 --cpus-per-task 4 --mem 8G --time 4:00:00
  scalebench status runs/emoji")]
pub(crate) struct Submit {
    /// The experiment file; see experiments/README.md
    pub(crate) experiment: PathBuf,
    /// What runs the jobs
    #[arg(long, value_enum, default_value = "slurm")]
    pub(crate) engine: Engine,
    /// Run directory, on a file system that all nodes see [default: runs/<name of the experiment file>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Shards, each a task of the job array
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) array: usize,
    #[command(flatten)]
    pub(crate) resources: Resources,
    #[command(flatten)]
    pub(crate) on: OnDevices,
    /// Seconds before the time limit at which a task is told to stop: more than its slowest image takes
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) grace: u32,
    /// Replace a value of the experiment file, for example images=4 or sampler.steps=10
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print the scripts, and neither write nor submit them
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Slurm,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 nothing is worse, 1 something is (named on the last lines), 2 the comparison failed.

Cells are matched by name, images by prompt and seed; where seeds differ by prompt; else the samples are unpaired. The
output says which. Nothing but the run directories is read, so runs from other machines and commits can be compared.

Example: what did my change do to the quick experiment?
  scalebench sweep experiments/quick.yaml --out runs/before     # then change something
  scalebench sweep experiments/quick.yaml --out runs/after
  scalebench compare runs/before runs/after --junit comparison.xml")]
pub(crate) struct Compare {
    /// Run directory to compare with
    pub(crate) baseline: PathBuf,
    /// Run directory to judge
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) judge: Judge,
    /// Leave times out, as of runs that were made on different machines
    #[arg(long)]
    pub(crate) no_speed: bool,
    /// Leave memory out, as of runs that were made with different numbers of threads
    #[arg(long)]
    pub(crate) no_memory: bool,
    /// Write a JUnit report, as CI systems read it
    #[arg(long, value_name = "FILE.xml")]
    pub(crate) junit: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What counts as worse.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Judge {
    /// Probability of any false alarm in a comparison: for quality over all cells and metrics together, for speed, and
    /// for memory
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub(crate) alpha: f64,
    /// Ratio of seconds an image from which slower is worse, and faster better
    #[arg(long, value_name = "RATIO", default_value_t = 1.2)]
    pub(crate) slow_down: f64,
    /// What is compared of an image's making: wall seconds, or processor seconds, which other work on the machine hardly
    /// moves and in which waiting and lost parallelism do not show
    #[arg(long, value_enum, value_name = "CLOCK", default_value = "wall")]
    pub(crate) clock: Clock,
    /// Ratio of an image's peak memory from which more is worse, and less better
    #[arg(long, value_name = "RATIO", default_value_t = 1.1)]
    pub(crate) more_memory: f64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 nothing regressed, 1 something did (named on the last lines), 2 the run or the comparison failed.

The history directory:
  history.parquet     one row per night and cell
  trend.svg           values with intervals and times by date
  accepted/           description, manifests, features and times of the accepted run
  latest/             the last run, whole; with comparison.json and comparison.xml (JUnit)

A cell that seems slower is timed twice more, and each image's best time counts: the machine may have been busy.

The first run is accepted. Later ones are not, however well they compare: a baseline that follows every run that is not
significantly worse follows a slow decline too. When a change is meant to stay, look at latest/report/index.html and say
`--accept`.

Example: in a nightly job
  scalebench nightly experiments/nightly.yaml --history /var/lib/scalebench
and after a change that is meant
  scalebench nightly experiments/nightly.yaml --history /var/lib/scalebench --accept")]
pub(crate) struct Nightly {
    /// The experiment file; see experiments/README.md
    pub(crate) experiment: PathBuf,
    /// Where the history is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) history: PathBuf,
    /// Make the latest run the accepted one, and run nothing
    #[arg(long)]
    pub(crate) accept: bool,
    /// Replace a value of the experiment file, for example images=4 or sampler.steps=10
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    #[command(flatten)]
    pub(crate) on: OnDevices,
    #[command(flatten)]
    pub(crate) judge: Judge,
    /// Leave times out
    #[arg(long)]
    pub(crate) no_speed: bool,
    /// Leave memory out
    #[arg(long)]
    pub(crate) no_memory: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: watch a run from another shell
  watch -n 10 scalebench status runs/quick")]
pub(crate) struct Status {
    /// Run directory
    pub(crate) dir: PathBuf,
    /// Minutes over which the rate is taken
    #[arg(long, value_name = "M", default_value_t = 10.0)]
    pub(crate) window: f64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Writes one PNG file, and nothing if something is wrong. A video is a folder of PNG files, one a frame, and beside it an animated WebP
of the same name, without losses.

Example: two images of the pocket checkpoint at four times its training pixels, without and with re-dilation
  scalebench generate --checkpoint datasets/pocket --prompt \"cat face\" --size 128x128 --guidance-scale 3.5 --out direct.png
  scalebench generate --checkpoint datasets/pocket --prompt \"cat face\" --size 128x128 --guidance-scale 3.5 --method scalecrafter --out cat.png
Example: SDXL from the Hugging Face cache, as its authors sample it
  scalebench generate --checkpoint stabilityai/stable-diffusion-xl-base-1.0 --sampler euler --guidance-scale 5 --prompt \"a cat\" --size 2048x2048 --method scalecrafter --out cat.png
Example: AnimateDiff at four times its training pixels, re-dilated
  scalebench generate --checkpoint stable-diffusion-v1-5/stable-diffusion-v1-5 --motion-adapter animatediff-motion-adapter-v1-5-2 --frames 16 --prompt \"a cat\" --size 1024x1024 --method scalecrafter --eta 0 --timestep-spacing linspace --out cat
Example: every stage's tensors, for a comparison with PyTorch
  scalebench generate --checkpoint datasets/pocket --prompt \"cat face\" --size 64x64 --steps 4 --out cat.png --trace trace.safetensors")]
pub(crate) struct Generate {
    /// Checkpoint folder in diffusers layout, or a hub repository in the local cache or on the net
    #[arg(long, value_name = "DIR|REPO_ID")]
    pub(crate) checkpoint: PathBuf,
    /// Motion modules for videos by a checkpoint of images: a folder as diffusers' MotionAdapter has it (AnimateDiff)
    #[arg(long, value_name = "DIR")]
    pub(crate) motion_adapter: Option<PathBuf>,
    /// Frames of a video; needs a motion adapter, or a checkpoint of videos (ModelScope, or AnimateDiff merged)
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) frames: usize,
    /// Frames a second that the animated file shows
    #[arg(long, value_name = "F", default_value = "8")]
    pub(crate) fps: Fps,
    /// Files to read, for example fp16 [default: the plain ones, else fp16]
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// Precision that weights are rounded to, f32, bf16 or f16, and on a GPU the U-Net's activations; sums are f32
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub(crate) dtype: Dtype,
    #[command(flatten)]
    pub(crate) on: OnDevice,
    /// Model family whose method settings apply [default: what the architecture tells, else the folder's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) family: Option<String>,
    #[arg(long)]
    pub(crate) prompt: String,
    #[arg(long, default_value = "")]
    pub(crate) negative_prompt: String,
    /// Size in pixels
    #[arg(long, value_name = "WxH")]
    pub(crate) size: Size,
    /// The image; of a video, the folder of its frames
    #[arg(long, value_name = "FILE.png|DIR")]
    pub(crate) out: PathBuf,
    /// Built-in method, or a YAML file
    #[arg(long, value_name = "NAME|FILE.yaml", default_value = "direct-inf")]
    pub(crate) method: String,
    /// ddim, ddpm, pndm, euler, euler-ancestral, dpm++2m or unipc
    #[arg(long, default_value = "ddim")]
    pub(crate) sampler: Sampler,
    #[arg(long, default_value_t = 50)]
    pub(crate) steps: usize,
    /// DDIM's share of fresh noise [default: 1 for ddim, as in ScaleCrafter's code, else 0]
    #[arg(long)]
    pub(crate) eta: Option<f64>,
    /// leading, trailing or linspace [default: the checkpoint's, else the sampler's usual one]
    #[arg(long, value_name = "SPACING")]
    pub(crate) timestep_spacing: Option<Spacing>,
    /// Noise levels of Karras et al. 2022
    #[arg(long)]
    pub(crate) use_karras_sigmas: bool,
    /// Betas rescaled to zero terminal signal-to-noise ratio
    #[arg(long)]
    pub(crate) rescale_betas_zero_snr: bool,
    /// Size that SDXL is told: target or base
    #[arg(long, value_name = "SIZE", default_value = "target")]
    pub(crate) size_conditioning: SizeConditioning,
    /// whole, tiled or tiled-synchronised
    #[arg(long, value_name = "HOW", default_value = "whole")]
    pub(crate) vae_decode: VaeDecode,
    #[arg(long, default_value_t = 7.5)]
    pub(crate) guidance_scale: f64,
    #[arg(long, default_value_t = 0.0)]
    pub(crate) guidance_rescale: f64,
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Take the first latents from this file (tensor `init_latents`)
    #[arg(long, value_name = "F.safetensors")]
    pub(crate) init_latents: Option<PathBuf>,
    /// Take the noise of the steps from this file (tensor `noise`)
    #[arg(long, value_name = "F.safetensors")]
    pub(crate) step_noise: Option<PathBuf>,
    /// Write the intermediate tensors
    #[arg(long, value_name = "F.safetensors")]
    pub(crate) trace: Option<PathBuf>,
}

/// Frames a second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fps(pub(crate) f64);

impl FromStr for Fps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fps = text.parse().ok().filter(|fps| (0.1..=1000.0).contains(fps));
        fps.map(Fps).ok_or_else(|| "expected a number from 0.1 to 1000".into())
    }
}

/// Width × height in pixels, written `256x192`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(['x', '×']).and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
        match parsed {
            Some((width, height)) if width > 0 && height > 0 => Ok(Size { width, height }),
            _ => Err("expected WxH in pixels, for example 256x256".into()),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
The page of a study is one file that works without a network: arrow keys, or a touch, choose; it hands out votes.csv.

Example: the grid of a run at 16x
  scalebench grid runs/superres --scale 16x --out grid.png
Example: a study of fifty pairs, and what came of it
  scalebench grid runs/superres --scale 4x --blind scalecrafter,sd-upscale --images 50 --out study.html
  scalebench votes --key study.key.json anna.csv ben.csv")]
pub(crate) struct Grid {
    /// Run directory
    pub(crate) dir: PathBuf,
    /// Which scale, by its factor or label [default: the only one]
    #[arg(long, value_name = "SCALE")]
    pub(crate) scale: Option<String>,
    /// Which model [default: the first]
    #[arg(long, value_name = "NAME")]
    pub(crate) model: Option<String>,
    /// A study in place of the grid: two methods, the same prompts and seeds, order and sides shuffled
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) blind: Option<Vec<String>>,
    /// Pairs of the study [default: all]
    #[arg(long, value_name = "N", requires = "blind")]
    pub(crate) images: Option<usize>,
    /// Seed of order and sides
    #[arg(long, value_name = "N", default_value_t = 0, requires = "blind")]
    pub(crate) seed: u32,
    /// What the study asks [default: Which of the two images is better?]
    #[arg(long, value_name = "TEXT", requires = "blind")]
    pub(crate) question: Option<String>,
    /// Where the key goes, which says whose image is on which side [default: that of --out, ending in .key.json]
    #[arg(long, value_name = "FILE", requires = "blind")]
    pub(crate) key: Option<PathBuf>,
    /// The grid (PNG), or the study (HTML)
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Votes count one by one, which takes voters for independent of one another; the line of majorities counts every pair once.

Example: the win rate of the first method of the study
  scalebench votes --key study.key.json anna.csv ben.csv")]
pub(crate) struct Votes {
    /// Files that the study's page handed out, one a voter
    #[arg(required = true, value_name = "CSV")]
    pub(crate) votes: Vec<PathBuf>,
    /// The study's key
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Coverage of the interval
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub(crate) level: f64,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: once for the real images, then used as often as wanted
  scalebench features --images photos --extractor inception --out photos.safetensors
  scalebench score --real photos.safetensors --fake generated --extractor inception
Example: ten crops of every generated image at their own size
  scalebench features --images generated --extractor inception --crops 10x299,native --out crops.safetensors")]
pub(crate) struct Features {
    /// Images: a folder (png, jpeg, webp; recursive), a zip archive, or tar shards (a file, a folder of them, or a pattern such
    /// as '{00000..00010}.tar')
    #[arg(long, value_name = "IMAGES")]
    pub(crate) images: PathBuf,
    #[command(flatten)]
    pub(crate) look: Look,
    /// Square crops instead of whole images: COUNTxSIZE, then any of ,random ,grid ,shared ,seed=N ,native (not resized) ,scales (of the image reduced by random factors)
    #[arg(long, value_name = "SPEC")]
    pub(crate) crops: Option<CropSpec>,
    /// Resize to a square of this side first
    #[arg(long, value_name = "PIXELS")]
    pub(crate) pre_resize: Option<u32>,
    /// Pass the images through JPEG of this quality first
    #[arg(long, value_name = "Q")]
    pub(crate) jpeg_quality: Option<u8>,
    /// What of the network is taken: 2048, 64, 192, 768, logits_unbiased or logits
    #[arg(long, default_value = "2048")]
    pub(crate) tap: Tap,
    /// Leave out images that cannot be decoded, instead of failing
    #[arg(long)]
    pub(crate) skip_corrupt: bool,
    /// Feature file to write: .safetensors, or .npz with the array `feats`
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Through which network images are looked at, and how they get there.
#[derive(Debug, Args)]
pub(crate) struct Look {
    /// Feature network: Inception weights (safetensors or the original .pth), `inception` for those in torch's cache, a Hugging Face
    /// folder of CLIP or DINOv2, for videos I3D weights (safetensors, i3d_pretrained_400.pt or i3d_torchscript.pt), or `pixels`: none,
    /// for spectrum and sharpness
    #[arg(long, value_name = "PATH")]
    pub(crate) extractor: Option<PathBuf>,
    /// Weights of the network named by --extractor, if they lie elsewhere
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: Option<PathBuf>,
    /// From image to network input: clean, pytorch-fid, torch-fidelity, torchmetrics-aa, clip, cmmd, dgm-eval or dgm-eval-clean; of
    /// videos lvdm, videogpt or i3d-tf [default: the network's usual one; clean for Inception, lvdm for I3D]
    #[arg(long, value_name = "PROFILE")]
    pub(crate) preprocess: Option<Profile>,
    /// Cut the largest square out of the middle first, instead of squashing what is not square
    #[arg(long)]
    pub(crate) center_crop: bool,
    /// Replace colours by their luma first
    #[arg(long)]
    pub(crate) grey: bool,
    /// Frames of each video that are looked at
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) frames: u32,
    /// Distance from one of them to the next
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) frame_stride: u32,
    /// Draw the first of them for each video by this seed [default: a video's first]
    #[arg(long, value_name = "SEED")]
    pub(crate) frame_seed: Option<u64>,
    #[command(flatten)]
    pub(crate) on: OnDevice,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Where features are of unequal kinds (network, weights, preprocessing), nothing is printed and the status is 2.

Example: the usual four against a folder of photographs
  scalebench score --real photos --fake generated --extractor inception --metrics fid,kid,precision,recall
Example: FID against statistics that pytorch-fid or clean-fid wrote, looked at as pytorch-fid does
  scalebench score --real statistics.npz --fake generated --extractor inception --preprocess pytorch-fid --metrics fid
Example: FVD and KVD as LVDM's script has them; videos are folders of folders of frames, animated PNG or WebP files, or uint8 arrays
  scalebench score --real clips.npz --fake generated --extractor i3d_pretrained_400.pt --metrics fvd,kvd,frame_difference,flicker
Example: what a paper measures, crops and all
  scalebench score --protocol accdiffusion --real photos --fake generated --base-size 1024 --extractor inception --clip clip-vit-large-patch14 --captions captions.txt")]
pub(crate) struct Score {
    /// Real side: images (a folder, a zip archive, tar shards), a feature file, or statistics (.npz with mu and sigma, .safetensors)
    #[arg(long, value_name = "A")]
    pub(crate) real: Option<PathBuf>,
    /// Generated side, likewise
    #[arg(long, value_name = "B")]
    pub(crate) fake: PathBuf,
    /// Base-resolution generations of the same prompts, in the same order: for protocols with comparisons against them
    #[arg(long, value_name = "DIR|ZIP")]
    pub(crate) base: Option<PathBuf>,
    /// fid, kid, kid_subsets (torch-fidelity's mean over subsets), fid_infinity, is, precision, recall, density, coverage, cmmd,
    /// clip_score, spectrum, sharpness, repetition; of videos fvd, kvd, frame_difference, flicker [default: fid,kid, with I3D fvd,kvd]
    #[arg(long, value_delimiter = ',', conflicts_with = "protocol")]
    pub(crate) metrics: Vec<ScoreMetric>,
    /// Measure what a protocol measures; see `scalebench protocols`
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) protocol: Option<String>,
    /// Training size of the model in pixels: what a protocol calls base resolution [default: the smaller side of the first --base image]
    #[arg(long, value_name = "PIXELS")]
    pub(crate) base_size: Option<u32>,
    #[command(flatten)]
    pub(crate) look: Look,
    /// CLIP for a protocol that uses it: a Hugging Face folder
    #[arg(long, value_name = "DIR", requires = "protocol")]
    pub(crate) clip: Option<PathBuf>,
    /// DINOv2 for a protocol that uses it: a Hugging Face folder
    #[arg(long, value_name = "DIR", requires = "protocol")]
    pub(crate) dinov2: Option<PathBuf>,
    /// I3D for a protocol that uses it: its weights
    #[arg(long, value_name = "FILE", requires = "protocol")]
    pub(crate) i3d: Option<PathBuf>,
    /// Crops of the generated images: COUNTxSIZE, then any of ,random ,grid ,shared ,seed=N ,native ,scales
    #[arg(long, value_name = "SPEC", conflicts_with = "protocol")]
    pub(crate) fake_crops: Option<CropSpec>,
    /// Crops of the real images
    #[arg(long, value_name = "SPEC", conflicts_with = "protocol")]
    pub(crate) real_crops: Option<CropSpec>,
    /// Resize generated images to a square of this side first
    #[arg(long, value_name = "PIXELS", conflicts_with = "protocol")]
    pub(crate) fake_pre_resize: Option<u32>,
    /// Resize real images to a square of this side first
    #[arg(long, value_name = "PIXELS", conflicts_with = "protocol")]
    pub(crate) real_pre_resize: Option<u32>,
    /// Pass generated images through JPEG of this quality first, as when the real ones are JPEG files
    #[arg(long, value_name = "Q", conflicts_with = "protocol")]
    pub(crate) fake_jpeg_quality: Option<u8>,
    /// Prompts of the generated images, one a line, in the order of the sorted file names: for clip_score
    #[arg(long, value_name = "FILE")]
    pub(crate) captions: Option<PathBuf>,
    /// Subsets of kid_subsets
    #[arg(long, value_name = "N", default_value_t = KidOptions::TORCH_FIDELITY.subsets)]
    pub(crate) kid_subsets: usize,
    /// Images in each, on either side
    #[arg(long, value_name = "N", default_value_t = KidOptions::TORCH_FIDELITY.subset_size)]
    pub(crate) kid_subset_size: usize,
    /// Seed of the subsets
    #[arg(long, value_name = "SEED", default_value_t = KidOptions::TORCH_FIDELITY.seed)]
    pub(crate) kid_seed: u32,
    /// Leave out images that cannot be decoded, instead of failing
    #[arg(long)]
    pub(crate) skip_corrupt: bool,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What `score` can print: a metric with an interval, or an estimator with a spread of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScoreMetric {
    Interval(Metric),
    KidSubsets,
    FidInfinity,
}

impl ScoreMetric {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Interval(metric) => metric.name(),
            Self::KidSubsets => "kid_subsets",
            Self::FidInfinity => "fid_infinity",
        }
    }
}

impl FromStr for ScoreMetric {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "kid_subsets" => Ok(Self::KidSubsets),
            "fid_infinity" => Ok(Self::FidInfinity),
            _ => {
                let found = Metric::ALL.into_iter().find(|metric| metric.name() == name);
                let names = Metric::ALL.map(Metric::name).join(", ");
                found.map(Self::Interval).ok_or_else(|| format!("expected kid_subsets, fid_infinity or one of {names}"))
            }
        }
    }
}

/// `COUNTxSIZE[,random|grid|shared][,seed=N][,native][,scales]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CropSpec(pub(crate) Crops);

impl FromStr for CropSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected COUNTxSIZE, then any of ,random ,grid ,shared ,seed=N ,native ,scales";
        let mut parts = text.split(',');
        let size = parts.next().and_then(|size| size.split_once('x')).and_then(|(n, size)| Some((n.parse().ok()?, size.parse().ok()?)));
        let (count, size) = size.ok_or(expected)?;
        let mut crops = Crops { count, size, position: Position::Random, seed: 0, resize: true, scales: Scales::Native };
        for part in parts {
            match part {
                "random" => crops.position = Position::Random,
                "grid" => crops.position = Position::Grid,
                "shared" => crops.position = Position::Shared,
                "native" => crops.resize = false,
                "scales" => crops.scales = Scales::Random,
                _ => crops.seed = part.strip_prefix("seed=").and_then(|seed| seed.parse().ok()).ok_or(expected)?,
            }
        }
        Ok(Self(crops))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: statistics that pytorch-fid and clean-fid read, and their condition
  scalebench stats photos --extractor inception --preprocess pytorch-fid --out statistics.npz
Example: as a reference whose images need not be at hand (reference: {statistics: photos.safetensors} in an experiment)
  scalebench stats photos --extractor inception --out photos.safetensors")]
pub(crate) struct Stats {
    /// Images, a feature file, or statistics to convert
    #[arg(value_name = "DIR|ZIP|FILE")]
    pub(crate) input: PathBuf,
    #[command(flatten)]
    pub(crate) look: Look,
    /// Leave out images that cannot be decoded, instead of failing
    #[arg(long)]
    pub(crate) skip_corrupt: bool,
    /// Statistics to write: .npz with mu and sigma as pytorch-fid and clean-fid read it, or .safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: begin a protocol of one's own
  scalebench protocols scalecrafter > mine.yaml")]
pub(crate) struct Protocols {
    /// Print this protocol's file
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: the transform of ScaleCrafter's dispersed convolutions, on the screen and in a file
  scalebench disperse
  scalebench disperse --small 3 --large 5 --input 3 --scale 2 --eta 0.05 --out R.safetensors")]
pub(crate) struct Disperse {
    /// Side of the trained kernel
    #[arg(long, default_value_t = 3)]
    pub(crate) small: usize,
    /// Side of the dispersed kernel
    #[arg(long, default_value_t = 5)]
    pub(crate) large: usize,
    /// Side of the input patch that the two must agree on
    #[arg(long, default_value_t = 3)]
    pub(crate) input: usize,
    /// Factor by which that patch is enlarged
    #[arg(long, default_value_t = 2)]
    pub(crate) scale: usize,
    /// Weight of the pixel-wise term
    #[arg(long, default_value_t = 0.05)]
    pub(crate) eta: f64,
    /// Write the matrix as tensor `R`, f64, (large², small²), instead of printing it
    #[arg(long, value_name = "R.safetensors")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: after an update of the program, or of what a report shows
  scalebench report runs/quick")]
pub(crate) struct Report {
    /// Run directory
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 the run is whole, 1 something is not (a line for each file), 2 there is no run, or it cannot be read.

Checked are the run's description, every image (whole, of its size, under its key, with its digest), the manifests, the cached
features, the results as CSV and Parquet, and what is left over of processes that were killed. What is wrong is made again by the
same `scalebench sweep`, but for run.yaml.

Example: before a run is copied, published or compared with
  scalebench verify runs/quick
  (cd runs/quick && b3sum --check checksums.b3)")]
pub(crate) struct Verify {
    /// Run directory
    pub(crate) dir: PathBuf,
    /// Print one JSON object: files, wrong
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
One row for each image of each cell and of the base-resolution set: cell, model, scale, method, index, file, prompt,
negative_prompt, seed, width, height, base_width, base_height, steps, guidance_scale, sampler, eta. Where the experiment has
{images: PATTERN, name: mine}, `file` is where it will look for the image, from the folder in front of the pattern's first
placeholder on.

Example: somebody's method in the same table
  scalebench jobs mine.yaml --out jobs.csv
  python scripts/diffusers_jobs.py jobs.csv --method mine --checkpoint DIR --out mine
  scalebench sweep mine.yaml")]
pub(crate) struct Jobs {
    /// The experiment file, or the name of a built-in one
    pub(crate) experiment: PathBuf,
    /// File to write: .csv, .parquet or .jsonl [default: CSV on stdout]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Replace a value of the experiment file, for example images=4 or sampler.steps=10
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Runs of different protocols, references or feature networks are refused: their numbers do not compare.

Example: all runs of a paper's table in one
  scalebench results runs/sd15 runs/sdxl --format latex > table.tex")]
pub(crate) struct Results {
    /// Run directories with results
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// csv and json have every column; latex and markdown are the table that people read
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "markdown")]
    pub(crate) format: TableFormat,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The site is made from what is kept of a run: run.yaml, the results, and the report's page, be that in a run directory or copied
out of one. It needs no server and fetches nothing. A site that is in DIR already is replaced; a folder with other things is left alone.

Example: the runs of this repository
  scalebench site --out site reports/site.yaml
Example: runs of one's own
  scalebench site --out site runs/quick runs/mine")]
pub(crate) struct Site {
    /// Run directories, folders with committed reports, or one site file (.yaml): title, runs, goldens
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// Folder of the site
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TableFormat {
    Csv,
    Latex,
    Markdown,
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A built-in experiment finds these without it; they are for other programs, as diffusers, and for reading.

Example: the pocket checkpoint for a diffusers pipeline
  scalebench unpack data
  python -c 'import diffusers; diffusers.DiffusionPipeline.from_pretrained(\"data/datasets/pocket\")'")]
pub(crate) struct Unpack {
    /// Folder to write `datasets` and `experiments` into
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: which of these folders can be used, and what they are
  scalebench models datasets ~/checkpoints")]
pub(crate) struct Models {
    /// Checkpoint folders, or folders that hold some [default: none; the known families are listed]
    pub(crate) folders: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: the reference images of a sweep at twice the training side, as PNG files
  scalebench dataset --split reference --png --views 512 --size 128 --out emoji-128
Example: videos for training, with their captions
  scalebench dataset --split train --views 3 --frames 16 --size 64 --out moving-64")]
pub(crate) struct Dataset {
    #[arg(long)]
    pub(crate) split: SplitName,
    /// Placements of each emoji; with --png, images in all
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) views: usize,
    /// Side of the images in pixels
    #[arg(long, value_name = "S", default_value_t = 64)]
    pub(crate) size: u32,
    /// Frames of each; more than 1 are videos of emoji that move
    #[arg(long, value_name = "F", default_value_t = 1)]
    pub(crate) frames: usize,
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Write PNG files (of videos: folders of them) in the order of a sweep's reference (prompt seed 0)
    #[arg(long)]
    pub(crate) png: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: what the autoencoder alone costs in FID
  scalebench dataset --split reference --png --views 512 --size 64 --out real
  scalebench reconstruct --checkpoint datasets/pocket --images real --out reconstructed
  scalebench score --real real --fake reconstructed --extractor datasets/pocket-inception")]
pub(crate) struct Reconstruct {
    #[arg(long, value_name = "DIR")]
    pub(crate) checkpoint: PathBuf,
    #[arg(long, value_name = "DIR")]
    pub(crate) images: PathBuf,
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: BenchWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchWhat {
    /// The U-Net of a diffusers configuration file
    Unet(BenchUnet),
    /// The decoder of a diffusers configuration file
    Vae(BenchVae),
    /// The feature network of FID, on noise
    Inception(BenchInception),
}

/// How often, and how it is told.
#[derive(Debug, Args)]
pub(crate) struct Timed {
    /// Runs to time, after one to warm up
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub(crate) steps: usize,
    #[command(flatten)]
    pub(crate) on: OnDevice,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: the decoder of SD 1.5 for an image of 1024 by 1024
  scalebench bench vae --config vae/config.json --size 128x128")]
pub(crate) struct BenchVae {
    /// vae/config.json of a diffusers checkpoint; weights are drawn
    #[arg(long, value_name = "VAE_CONFIG.json")]
    pub(crate) config: PathBuf,
    /// Size of the latents, not of the image
    #[arg(long, value_name = "WxH", default_value = "64x64")]
    pub(crate) size: Size,
    /// Images
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) batch: usize,
    #[command(flatten)]
    pub(crate) timed: Timed,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example
  scalebench bench inception --weights pt_inception-2015-12-05-6726825d.pth --batch 8 --json")]
pub(crate) struct BenchInception {
    /// The network's weights
    #[arg(long, value_name = "FILE")]
    pub(crate) weights: PathBuf,
    /// Images of 299 × 299
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) batch: usize,
    #[command(flatten)]
    pub(crate) timed: Timed,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: a guided step of SD 1.5 at 1024 by 1024, plain and under ScaleCrafter
  scalebench bench unet --config unet/config.json --size 128x128
  scalebench bench unet --config unet/config.json --size 128x128 --method scalecrafter --json")]
pub(crate) struct BenchUnet {
    /// unet/config.json of a diffusers checkpoint; weights are drawn
    #[arg(long, value_name = "UNET_CONFIG.json")]
    pub(crate) config: PathBuf,
    /// Size of the latents, not of the image
    #[arg(long, value_name = "WxH", default_value = "64x64")]
    pub(crate) size: Size,
    /// Samples of a plain guided step: two for each image
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) batch: usize,
    /// Precision of weights and products
    #[arg(long, value_name = "f32|bf16|f16", default_value = "f32")]
    pub(crate) dtype: Dtype,
    /// Time a guided step under this method, with all the passes it makes, instead of the plain network's
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) method: Option<String>,
    #[command(flatten)]
    pub(crate) timed: Timed,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: in ~/.bashrc
  source <(scalebench completions bash)")]
pub(crate) struct Completions {
    pub(crate) shell: clap_complete::Shell,
}

const CONVERT_HELP: &str = "\
Example
  scalebench weights convert pt_inception-2015-12-05-6726825d.pth --out inception.safetensors";

#[derive(Debug, Args)]
pub(crate) struct Weights {
    #[command(subcommand)]
    pub(crate) action: WeightsAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WeightsAction {
    /// Check a weights file of the FID Inception, such as pytorch-fid's .pth, and write it as safetensors
    #[command(after_help = CONVERT_HELP)]
    Convert {
        /// A safetensors file, a file by torch.save or torch.jit.save, or a folder with model.safetensors
        #[arg(value_name = "IN")]
        input: PathBuf,
        #[arg(long, value_name = "OUT.safetensors")]
        out: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SplitName {
    Train,
    Reference,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example: read it, and install all of them for a user
  scalebench man | man -l -
  scalebench man ~/.local/share/man/man1")]
pub(crate) struct Man {
    /// Write scalebench.1 and a page for every command into this folder
    pub(crate) dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::*;

    /// Commands that do something themselves, by their whole names.
    fn leaves(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
        let inner: Vec<&Command> = command.get_subcommands().filter(|inner| inner.get_name() != "help").collect();
        if inner.is_empty() {
            found.push((name.to_owned(), command.clone()));
        }
        inner.into_iter().for_each(|inner| leaves(inner, &format!("{name} {}", inner.get_name()), found));
    }

    /// Every command's help has examples of it, and what they show is what the program takes.
    #[test]
    fn examples_are_valid_command_lines() {
        let mut commands = Vec::new();
        leaves(&Cli::command(), "scalebench", &mut commands);
        assert!(commands.len() > 20, "{}", commands.len());
        for (name, command) in commands {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let mut n_own = 0;
            for line in help.lines().filter_map(|line| line.trim_start().strip_prefix("watch -n 10 ").or(Some(line.trim_start()))) {
                // What a shell does with it is not the program's business.
                let end = [" | ", " > ", " 2>", " & ", " &", "; ", "    # ", ")"].into_iter().filter_map(|end| line.find(end)).min();
                let line = line[..end.unwrap_or(line.len())].trim_start_matches("source <(");
                if line.starts_with("scalebench ") {
                    n_own += usize::from(line.starts_with(&name));
                    let words = shlex::split(line).unwrap();
                    Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{name}: {line}: {error}"));
                }
            }
            assert!(help.contains("Example") && n_own > 0, "{name}: expected an example in: {help}");
        }
    }
}
