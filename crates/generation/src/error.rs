//! What can go wrong, each as one line that names the file, the key and what was expected.

use std::path::PathBuf;

/// This crate's results.
///
/// Example: [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// This crate's errors.
///
/// ```
/// use scalebench_generation::{Error, Result, locate, locate_here};
/// let found: Result<_> = locate("../../datasets/pocket".as_ref());
/// assert_eq!(found?, std::path::Path::new("../../datasets/pocket"));
/// let error = locate_here("no-such-folder".as_ref()).unwrap_err();
/// assert!(matches!(error, Error::Io { .. }));
/// assert_eq!(error.to_string(), "cannot read no-such-folder");
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be opened or read.
    #[error("cannot read {file}", file = file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file that is not what its name promises.
    #[error("{file}: {reason}", file = file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A configuration key with a value that this program does not implement.
    #[error("{file}: `{key}` is {found}, expected {expected}", file = file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value there.
        found: String,
        /// What is understood.
        expected: String,
    },
    /// A hub repository that is neither in the local cache nor to be had.
    #[error(
        "`{repository}` (revision {revision}) is neither a folder nor in the Hugging Face cache ({cache}), and downloading it failed: \
         {reason}; expected a folder, or `huggingface-cli download {repository} --revision {revision}` run where there is a network",
        cache = cache.display()
    )]
    Download {
        /// `org/name`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// Where it would be.
        cache: PathBuf,
        /// Why it could not be fetched.
        reason: String,
    },
    /// A tensor that the architecture needs and the file lacks.
    #[error("{file}: tensor `{name}` is missing, expected shape {expected:?}", file = file.display())]
    MissingTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor of another shape than the configuration implies.
    #[error("{file}: tensor `{name}` has shape {found:?}, expected {expected:?}", file = file.display())]
    TensorShape {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
        /// Its shape in the file.
        found: Vec<usize>,
    },
    /// A weight that is no number, or infinite.
    #[error("{file}: tensor `{name}` holds {value} at position {at}, expected finite numbers", file = file.display())]
    WeightNotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// Position in row-major order.
        at: usize,
        /// What is there, as it was rounded.
        value: f32,
    },
    /// Tensors that the architecture has no place for.
    #[error("{file}: {} tensors have no place in this architecture, first `{}`", names.len(), names[0], file = file.display())]
    LeftOverTensors {
        /// The file.
        file: PathBuf,
        /// Their names, sorted; never empty.
        names: Vec<String>,
    },
    /// A method that cannot do on this model what its file asks for.
    #[error("method `{method}`: {reason}")]
    Method {
        /// The method's name.
        method: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// A request that this checkpoint cannot serve.
    #[error("`{key}` is {found}, expected {expected}")]
    Request {
        /// The field of the request.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A run left the finite numbers.
    #[error("{place}: {tensor} hold {value}, expected finite numbers: weights, precision or settings let the run overflow")]
    NotFinite {
        /// The step, or what else was done.
        place: String,
        /// Which tensor.
        tensor: &'static str,
        /// The first value that is none.
        value: f32,
    },
    /// A tensor operation failed; the shapes are in the message.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn malformed(file: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Self::Malformed { file: file.into(), reason: reason.to_string() }
    }

    pub(crate) fn method(method: &str, reason: impl Into<String>) -> Self {
        Self::Method { method: method.to_owned(), reason: reason.into() }
    }
}

/// Reads a whole file; the error names it.
pub(crate) fn read(file: &std::path::Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|source| Error::Io { file: file.to_owned(), source })
}
