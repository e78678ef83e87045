//! The hub client against a small HTTP server on this machine, and against prepared cache folders.
#![allow(clippy::unwrap_used)] // tests

use medft_engine::data::hub::{DownloadProgress, Hub, HubError};
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that serves one repository. Files are named by their path in it.
#[derive(Default)]
struct FakeHub {
    files: HashMap<&'static str, Vec<u8>>,
    /// Answers every request for a file with this status.
    refuse_files: Option<u16>,
    /// Answers every request with this status.
    refuse_all: Option<u16>,
    /// Breaks the connection after so many bytes, once.
    break_after: Mutex<Option<usize>>,
    /// Sends so many bytes and then nothing, once.
    stall_after: Mutex<Option<usize>>,
    /// Connections that are open and silent.
    silent: Mutex<Vec<TcpStream>>,
    /// ETags of files that have not the usual one.
    etags: HashMap<&'static str, &'static str>,
    /// Request lines, with the range and the token.
    log: Mutex<Vec<String>>,
}

impl FakeHub {
    /// Serves until the test process ends; gives the endpoint.
    fn start(self) -> (Arc<FakeHub>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let hub = Arc::new(self);
        let served = Arc::clone(&hub);
        std::thread::spawn(move || {
            listener
                .incoming()
                .for_each(|stream| served.answer(stream.unwrap()))
        });
        (hub, endpoint)
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut lines = BufReader::new(stream.try_clone().unwrap())
            .lines()
            .map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            let found = head.iter().find_map(|line| {
                line.split_once(": ")
                    .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            });
            found.map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        let path = request.split(' ').nth(1).unwrap().to_owned();
        let range = header("range");
        self.log
            .lock()
            .unwrap()
            .push(format!("{path} {range} {}", header("authorization")));

        let is_file = path.contains("/resolve/");
        let refused = self.refuse_all.or(self.refuse_files.filter(|_| is_file));
        let file = path
            .split("/resolve/")
            .nth(1)
            .and_then(|rest| rest.split_once('/'))
            .map(|(_, file)| file);
        if let Some(status) = refused {
            let _ = write!(
                stream,
                "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        } else if path.starts_with("/api/") {
            let siblings: Vec<_> = self
                .files
                .keys()
                .map(|name| serde_json::json!({ "rfilename": name }))
                .collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        } else if let Some(bytes) = file.and_then(|file| self.files.get(file)) {
            self.send(stream, file.unwrap(), bytes, &range);
        } else {
            let _ = write!(
                stream,
                "HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
    }

    fn send(&self, mut stream: TcpStream, name: &str, bytes: &[u8], range: &str) {
        let (from, to) = range
            .strip_prefix("bytes=")
            .unwrap()
            .split_once('-')
            .unwrap();
        let from: usize = from.parse().unwrap();
        if from >= bytes.len() {
            let head = "HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return stream.write_all(head.as_bytes()).unwrap();
        }
        let to = to.parse().map_or(bytes.len(), |to: usize| to + 1);
        let part = &bytes[from..to];
        let _ = write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\n\
             ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nConnection: close\r\n\r\n",
            to - 1,
            bytes.len(),
            part.len(),
            self.etags.get(name).map_or_else(
                || format!("etag-{}", name.replace(['.', '/'], "-")),
                ToString::to_string
            ),
        );
        let asked_for_all = to - from > 1;
        let stall = asked_for_all.then(|| self.stall_after.lock().unwrap().take());
        if let Some(sent) = stall.flatten() {
            stream.write_all(&part[..sent]).unwrap();
            return self.silent.lock().unwrap().push(stream);
        }
        let cut = if asked_for_all {
            self.break_after.lock().unwrap().take()
        } else {
            None
        };
        let _ = stream.write_all(&part[..cut.unwrap_or(part.len()).min(part.len())]);
    }
}

fn hub(endpoint: &str, cache: &Path, more: &[(&str, &str)]) -> Hub {
    Hub::from_vars(|name| match name {
        "HF_ENDPOINT" => Some(endpoint.to_owned()),
        "HF_HOME" => Some(cache.display().to_string()),
        _ => more
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_string()),
    })
}

/// An endpoint where nobody listens.
fn nobody() -> String {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    format!("http://{free}")
}

#[derive(Default)]
struct Seen {
    sizes: Vec<u64>,
    bytes: u64,
    finished: usize,
}

impl DownloadProgress for Seen {
    fn started(&mut self, _: &str, bytes: u64) {
        self.sizes.push(bytes);
        self.bytes = 0;
    }
    fn advanced(&mut self, bytes: u64) {
        self.bytes += bytes;
    }
    fn finished(&mut self) {
        self.finished += 1;
    }
}

fn model_files() -> HashMap<&'static str, Vec<u8>> {
    let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}"#;
    HashMap::from([
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{ }".to_vec()),
        ("chat_template.jinja", b"{{ x }}".to_vec()),
        ("model.safetensors.index.json", index.as_bytes().to_vec()),
        ("one.safetensors", vec![1; 3_000]),
        ("two.safetensors", vec![2; 3_000]),
        ("consolidated.safetensors", vec![3; 9_000]),
        ("pytorch_model.bin", vec![4; 9_000]),
    ])
}

#[test]
fn a_model_is_downloaded_once_and_then_found_in_the_cache() {
    let (served, endpoint) = FakeHub {
        files: model_files(),
        ..FakeHub::default()
    }
    .start();
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Seen::default();
    let snapshot = hub(&endpoint, folder.path(), &[])
        .model("org/tiny", "main", &mut seen)
        .unwrap();

    assert_eq!(snapshot.commit, COMMIT);
    let mut names: Vec<_> = fs::read_dir(&snapshot.dir)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let mut expected: Vec<_> = model_files()
        .into_keys()
        .filter(|name| !name.starts_with(['p']) && *name != "consolidated.safetensors")
        .collect();
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(
        fs::read(snapshot.dir.join("two.safetensors")).unwrap(),
        [2; 3_000]
    );
    assert_eq!((seen.finished, seen.bytes), (6, 3_000));

    let requests = served.log.lock().unwrap().len();
    for revision in ["main", COMMIT] {
        let offline = hub(&nobody(), folder.path(), &[("HF_HUB_OFFLINE", "1")]);
        assert_eq!(
            offline.model("org/tiny", revision, &mut ()).unwrap(),
            snapshot
        );
    }
    fs::remove_file(snapshot.dir.join("two.safetensors")).unwrap();
    hub(&endpoint, folder.path(), &[])
        .model("org/tiny", "main", &mut ())
        .unwrap();
    // The list again, and the one file with its size first.
    assert_eq!(served.log.lock().unwrap().len(), requests + 3);
}

#[test]
fn a_download_continues_where_it_broke() {
    let csv: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    let files = HashMap::from([("data/notes.csv", csv.clone())]);
    let (served, endpoint) = FakeHub {
        files,
        break_after: Mutex::new(Some(70_000)),
        ..FakeHub::default()
    }
    .start();
    let folder = tempfile::tempdir().unwrap();
    // Left by a run that was killed.
    let blobs = folder.path().join("hub/datasets--org--notes/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("etag-data-notes-csv.part"), &csv[..20_000]).unwrap();

    let mut seen = Seen::default();
    let token = [("HF_TOKEN", "secret")];
    let path = hub(&endpoint, folder.path(), &token).dataset_file(
        "org/notes",
        "data/notes.csv",
        "main",
        &mut seen,
    );
    assert!(fs::read(path.unwrap()).unwrap() == csv);
    assert_eq!(
        (seen.sizes[0], seen.bytes, seen.finished),
        (200_000, 200_000, 1)
    );
    let log = served.log.lock().unwrap().join("\n");
    assert!(
        log.contains("bytes=20000- Bearer secret") && log.contains("bytes=90000-"),
        "{log}"
    );
    assert!(
        log.contains("/api/datasets/org/notes/revision/main"),
        "{log}"
    );
    assert!(
        log.contains(&format!(
            "/datasets/org/notes/resolve/{COMMIT}/data/notes.csv"
        )),
        "{log}"
    );
}

#[test]
fn a_download_that_was_killed_before_its_last_rename_begins_anew() {
    let csv = b"note,icd10\n".repeat(1_000);
    for left in [csv.len(), csv.len() + 1] {
        let files = HashMap::from([("notes.csv", csv.clone())]);
        let (_, endpoint) = FakeHub {
            files,
            ..FakeHub::default()
        }
        .start();
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join("hub/datasets--org--notes/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("etag-notes-csv.part"), vec![0; left]).unwrap();
        let path = hub(&endpoint, folder.path(), &[])
            .dataset_file("org/notes", "notes.csv", "main", &mut ())
            .unwrap();
        assert!(fs::read(path).unwrap() == csv);
    }
}

#[test]
fn a_stalled_download_ends_with_a_sentence_and_goes_on_later() {
    let csv: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    let (served, endpoint) = FakeHub {
        files: HashMap::from([("notes.csv", csv.clone())]),
        stall_after: Mutex::new(Some(20_000)),
        ..FakeHub::default()
    }
    .start();
    let folder = tempfile::tempdir().unwrap();
    let ask = || {
        let seconds = [("MEDFT_HUB_TIMEOUT", "1.5")];
        hub(&endpoint, folder.path(), &seconds).dataset_file(
            "org/notes",
            "notes.csv",
            "main",
            &mut (),
        )
    };
    let message = ask().unwrap_err().to_string();
    let said = message.contains("no byte came for 1.5 s") && message.contains("MEDFT_HUB_TIMEOUT");
    assert!(said && message.contains("`notes.csv`"), "{message}");
    let part = "hub/datasets--org--notes/blobs/etag-notes-csv.part";
    assert_eq!(
        fs::metadata(folder.path().join(part)).unwrap().len(),
        20_000
    );
    served.silent.lock().unwrap().clear();
    assert!(fs::read(ask().unwrap()).unwrap() == csv);
    let log = served.log.lock().unwrap().join("\n");
    assert!(log.contains("bytes=20000-"), "{log}");
}

#[test]
fn a_timeout_that_is_no_number_is_refused() {
    for wrong in ["soon", "0", "-3", "nan", "1e300"] {
        let variables = [("MEDFT_HUB_TIMEOUT", wrong)];
        let (error, message) = failure(FakeHub::default(), &variables);
        assert!(matches!(error, HubError::Timeout { .. }), "{message}");
        assert!(message.contains(&format!("`{wrong}`")), "{message}");
    }
}

#[test]
fn a_download_with_other_bytes_than_its_etag_says_is_deleted() {
    // sha256sum and git hash-object of `note,icd10\n`
    let lfs = "2c7958e8b95a9e8db8fa70d0fedaa109ca249fd0aec720401b6cd6fdc118a39a";
    let git = "9fac696d384fdb93350d1da5e80b0076226b2020";
    for (etag, kind) in [(lfs, "SHA-256"), (git, "git SHA-1")] {
        for (bytes, good) in [(&b"note,icd10\n"[..], true), (b"note,icd11\n", false)] {
            let (_, endpoint) = FakeHub {
                files: HashMap::from([("notes.csv", bytes.to_vec())]),
                etags: HashMap::from([("notes.csv", etag)]),
                ..FakeHub::default()
            }
            .start();
            let folder = tempfile::tempdir().unwrap();
            let asked = hub(&endpoint, folder.path(), &[]);
            let found = asked.dataset_file("org/notes", "notes.csv", "main", &mut ());
            assert_eq!(found.is_ok(), good, "{found:?}");
            let Err(error) = found else { continue };
            let message = error.to_string();
            let said = message.contains(kind) && message.contains(etag);
            assert!(said && message.contains("run again"), "{message}");
            let blobs = folder.path().join("hub/datasets--org--notes/blobs");
            let left = fs::read_dir(blobs).unwrap().map(|f| f.unwrap().file_name());
            assert!(!left.collect::<Vec<_>>().contains(&etag.into()));
        }
    }
}

fn failure(server: FakeHub, more: &[(&str, &str)]) -> (HubError, String) {
    let (_, endpoint) = server.start();
    let folder = tempfile::tempdir().unwrap();
    let error = hub(&endpoint, folder.path(), more)
        .model("org/tiny", "main", &mut ())
        .unwrap_err();
    let message = error.to_string();
    (error, message)
}

#[test]
fn refusals_say_what_to_do() {
    let gated = || FakeHub {
        files: model_files(),
        refuse_files: Some(401),
        ..FakeHub::default()
    };
    let (error, message) = failure(gated(), &[]);
    assert!(matches!(error, HubError::NoToken { .. }), "{message}");
    assert!(
        message.contains("/org/tiny, accept the licence") && message.contains("HF_TOKEN"),
        "{message}"
    );

    let (error, message) = failure(gated(), &[("HF_TOKEN", "old")]);
    assert!(
        matches!(error, HubError::Refused { status: 401, .. }),
        "{message}"
    );
    let (error, message) = failure(
        FakeHub {
            refuse_all: Some(403),
            ..FakeHub::default()
        },
        &[],
    );
    assert!(
        matches!(error, HubError::Refused { status: 403, .. }),
        "{message}"
    );
    let (error, message) = failure(
        FakeHub {
            refuse_all: Some(404),
            ..FakeHub::default()
        },
        &[],
    );
    assert!(
        matches!(error, HubError::NotFound { .. }) && message.contains("`org/tiny` at `main`"),
        "{message}"
    );
    let (error, message) = failure(
        FakeHub {
            refuse_all: Some(503),
            ..FakeHub::default()
        },
        &[],
    );
    assert!(
        matches!(error, HubError::Status { status: 503, .. }),
        "{message}"
    );

    let mut files = model_files();
    files.remove("model.safetensors.index.json");
    let (error, message) = failure(
        FakeHub {
            files,
            ..FakeHub::default()
        },
        &[],
    );
    assert!(
        matches!(error, HubError::Unsuitable { .. }) && message.contains("model.safetensors"),
        "{message}"
    );

    let mut files = model_files();
    files.insert(
        "model.safetensors.index.json",
        br#"{"weight_map": {"a": "../../x.safetensors"}}"#.to_vec(),
    );
    let (error, message) = failure(
        FakeHub {
            files,
            ..FakeHub::default()
        },
        &[],
    );
    assert!(
        matches!(error, HubError::Unsuitable { .. }) && message.contains("weight map"),
        "{message}"
    );
}

#[test]
fn a_hub_that_does_not_answer_and_an_empty_cache() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = nobody();
    let ask = |more: &[(&str, &str)]| {
        hub(&endpoint, folder.path(), more)
            .dataset_file("org/notes", "a.csv", "main", &mut ())
            .unwrap_err()
    };
    let refused = ask(&[]).to_string();
    assert!(
        refused.contains(&endpoint) && refused.contains("does not answer"),
        "{refused}"
    );
    let offline = ask(&[("HF_HUB_OFFLINE", "true")]).to_string();
    assert!(
        offline.contains("HF_HUB_OFFLINE is set") && offline.contains("`org/notes`"),
        "{offline}"
    );
}

#[test]
fn a_missing_file_of_a_data_set_is_named() {
    let (_, endpoint) = FakeHub {
        files: model_files(),
        ..FakeHub::default()
    }
    .start();
    let folder = tempfile::tempdir().unwrap();
    let error = hub(&endpoint, folder.path(), &[])
        .dataset_file("org/notes", "a.csv", "main", &mut ())
        .unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("`a.csv`") && message.contains("/datasets/org/notes"),
        "{message}"
    );
}

#[test]
fn the_environment_decides_where_the_cache_and_the_token_are() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("token"), " from file\n").unwrap();
    let home = folder.path().display().to_string();
    let hub = |vars: &[(&str, &str)]| {
        Hub::from_vars(|name| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_string())
        })
    };
    let found = hub(&[("HF_HOME", &home)]);
    assert!(found.cache() == folder.path().join("hub") && found.has_token());
    let found = hub(&[
        ("HF_HOME", &home),
        ("HF_HUB_CACHE", "/big/disk"),
        ("HF_TOKEN_PATH", "/none"),
    ]);
    assert!(found.cache() == Path::new("/big/disk") && !found.has_token());
    let found = hub(&[("XDG_CACHE_HOME", "/c"), ("HF_TOKEN", " t ")]);
    assert!(found.cache() == Path::new("/c/huggingface/hub") && found.has_token());
}
