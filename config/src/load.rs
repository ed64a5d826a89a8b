//! From a file or a text to a configuration.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{ConfigError, ConfigErrors};
use crate::model::Config;
use crate::source::{Problems, Source};
use crate::{hint, raw, validate};

/// The largest configuration file that is read, in bytes: 16 MiB.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

impl Config {
    /// Reads and checks the configuration file at `path`.
    ///
    /// # Errors
    /// One when the file cannot be read, is larger than [`MAX_FILE_BYTES`] or is not UTF-8; else as
    /// [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let whole = |message| ConfigError {
            file: path.to_owned(),
            position: None,
            message,
        };
        let bytes = read(path).map_err(|error| whole(unreadable(&error)))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(whole(
                "larger than 16 MiB, so hardly a configuration; give the right file".into(),
            )
            .into());
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => parse(&Source::new(path, &bytes), text),
            Err(error) => {
                let message = "not UTF-8, which TOML requires; save the file as UTF-8".into();
                Err(Source::new(path, &bytes)
                    .error(error.valid_up_to(), message)
                    .into())
            }
        }
    }

    /// Checks the configuration `text`; `name` stands for the file in messages and in [`Config::file`].
    ///
    /// # Errors
    /// The first mistake that is one of TOML, an unknown key or a value's type; when there is none such, all
    /// mistakes in what the values say. Each with its place.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigErrors> {
        parse(&Source::new(Path::new(name), text.as_bytes()), text)
    }
}

fn parse(source: &Source<'_>, text: &str) -> Result<Config, ConfigErrors> {
    let root: raw::Root = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        source.error(offset, hint::explain(error.message()))
    })?;
    let mut problems = Problems::new(source);
    let config = validate::config(&root, source.file(), &mut problems);
    let errors = problems.into_errors();
    if errors.is_empty() {
        Ok(config)
    } else {
        Err(ConfigErrors::new(errors))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // Bounded by reading, not by the file's stated size: that of a device or a pipe is 0.
    File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => "check the path, or start from one of examples/",
        io::ErrorKind::PermissionDenied => "run as root, or let this user read it",
        io::ErrorKind::IsADirectory => "give a file inside it",
        _ => "check the path",
    };
    format!("cannot read the configuration: {error}; {advice}")
}
