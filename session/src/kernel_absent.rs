//! The kernel's dm-crypt in a build without it: said by name, and never found.

use block::Bytes;
use secret::{KeyProvider, Secret};

use crate::protocol::UnlockOrder;
use crate::registry::{Info, MappingRecord};
use crate::run_dir::{Entry, RunDir};
use crate::{
    CloseReport, MappingFlags, OpenReport, OpenRequest, ResizeReport, SessionError, Status, UnlockAgain, choice,
};

const NOT_BUILT: &str = "not in this build (luksctl was built without the feature `kernel`)";

/// No mapping can be found by this build.
#[derive(Debug)]
pub(crate) enum Subject {}

/// No opening can come so far.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    #[allow(dead_code)] // the other build makes it
    NotPossible {
        reason: String,
        passphrase: Secret,
    },
    Failed(SessionError),
}

impl Subject {
    pub(crate) fn ours(_entry: &Entry, _info: Box<Info>) -> Result<Subject, SessionError> {
        Err(not_built())
    }

    pub(crate) fn foreign(_name: &str) -> Result<Option<Subject>, SessionError> {
        Ok(None)
    }

    pub(crate) fn status(&self) -> Result<Status, SessionError> {
        match *self {}
    }
}

fn not_built() -> SessionError {
    SessionError::BackendNotPossible { backend: choice::DM_CRYPT, reason: NOT_BUILT.to_owned() }
}

pub(crate) fn hindrance(_name: &str, _uuid: &str) -> Option<String> {
    Some(NOT_BUILT.to_owned())
}

pub(crate) fn check_name_free(_entry: &Entry) -> Result<(), SessionError> {
    Ok(())
}

pub(crate) fn remove_orphans() {}

pub(crate) fn is_active(_entry: &Entry, _record: &MappingRecord) -> Result<bool, SessionError> {
    Err(not_built())
}

pub(crate) fn open(
    _run: &RunDir,
    _entry: &Entry,
    _order: &UnlockOrder,
    _request: &OpenRequest,
    _keys: &mut dyn KeyProvider,
) -> Result<OpenReport, OpenFailure> {
    Err(OpenFailure::Failed(not_built()))
}

pub(crate) fn clean(_entry: &Entry, _record: &MappingRecord) -> Result<(), SessionError> {
    Err(not_built())
}

pub(crate) fn tidy(_run: &RunDir, _entry: &Entry) -> Result<bool, SessionError> {
    Ok(false)
}

pub(crate) fn close(subject: Subject, _deferred: bool) -> Result<CloseReport, SessionError> {
    match subject {}
}

pub(crate) fn status(_entry: &Entry, _info: &Info) -> Result<Option<Status>, SessionError> {
    Err(not_built())
}

pub(crate) fn foreign_mappings() -> Vec<String> {
    Vec::new()
}

pub(crate) fn suspend(subject: &Subject) -> Result<(), SessionError> {
    match *subject {}
}

pub(crate) fn resume(subject: &Subject, _passphrase: &Secret, _again: &UnlockAgain) -> Result<(), SessionError> {
    match *subject {}
}

pub(crate) fn refresh(
    subject: &Subject,
    _flags: &MappingFlags,
    _again: &UnlockAgain,
    _keys: &mut dyn KeyProvider,
) -> Result<(), SessionError> {
    match *subject {}
}

pub(crate) fn resize(
    subject: &Subject,
    _size: Option<Bytes>,
    _again: &UnlockAgain,
    _keys: &mut dyn KeyProvider,
) -> Result<ResizeReport, SessionError> {
    match *subject {}
}
