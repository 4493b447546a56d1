//! What only a terminal gets: colours, questions, a live screen.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use tbmq_proto::control::credentials::Proof;

use crate::{
    fake::{Served, examples, serve},
    nobody, tbmqctl,
};

/// A program whose three streams are a terminal.
pub(crate) struct Terminal {
    keyboard: File,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
    child: Child,
}

impl Terminal {
    pub(crate) fn start(mut command: Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).expect("it is ours");
        unlockpt(&ours).expect("it opens");
        let name = ptsname(&ours, Vec::new()).expect("its name");
        let theirs =
            rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("its other end");
        let stream = || Stdio::from(theirs.try_clone().expect("a copy"));
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let child = command.env("TERM", "xterm").env_remove("NO_COLOR").spawn().expect("tbmqctl starts");
        drop((command, theirs));
        let keyboard = File::from(ours);
        let mut reading = keyboard.try_clone().expect("a copy");
        let (shown, screen) = mpsc::sync_channel(100);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // When the last program is gone, reading fails.
            while let Ok(count @ 1..) = reading.read(&mut bytes) {
                if shown.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { keyboard, screen, seen: String::new(), child }
    }

    /// Waits until a text was shown.
    pub(crate) fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("{text:?} was not shown ({error}): {:?}", self.seen),
            }
        }
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("a keyboard");
    }

    /// All that was shown until it ended because it was interrupted.
    pub(crate) fn interrupt(self) -> (String, ExitStatus) {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("it runs");
        self.end()
    }

    /// All that was shown, and how it ended.
    pub(crate) fn end(mut self) -> (String, ExitStatus) {
        let status = self.child.wait().expect("it ends");
        while let Ok(bytes) = self.screen.recv_timeout(Duration::from_secs(30)) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        (self.seen, status)
    }
}

pub(crate) fn command(served: &Served, arguments: &[&str]) -> Command {
    let mut command = tbmqctl(arguments);
    command.env("TBMQCTL_SERVER", &served.address);
    command
}

fn with_examples() -> Served {
    let served = serve();
    served.fake.held.lock().extend(examples());
    served
}

#[test]
fn states_and_errors_have_colours_unless_they_are_not_wanted() {
    let served = with_examples();
    let (shown, _) = Terminal::start(command(&served, &["integration", "list"])).end();
    assert!(shown.contains("\u{1b}[38;5;10mACTIVE") && shown.contains("\u{1b}[38;5;9mFAILED"), "{shown:?}");
    let (shown, status) = Terminal::start(tbmqctl(&["whoami", "--server", &nobody()])).end();
    assert_eq!(status.code(), Some(3));
    assert!(shown.starts_with("\u{1b}["), "{shown:?}");
    let mut plain = Command::new("env");
    plain.args(["NO_COLOR=1", env!("CARGO_BIN_EXE_tbmqctl"), "integration", "list"]);
    plain.env("TBMQCTL_SERVER", &served.address).env("TBMQCTL_CONFIG", "/nonexistent/config.yaml");
    let (shown, _) = Terminal::start(plain).end();
    assert!(shown.contains("ACTIVE") && !shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn what_cant_be_taken_back_is_asked_for() {
    for (answer, code, cleared) in [("n\n", 2, 0), ("\n", 2, 0), ("y\n", 0, 1)] {
        let served = with_examples();
        let mut terminal = Terminal::start(command(&served, &["event", "clear", "sensors"]));
        terminal.wait_for("Remove all events of sensors for good? [y/N] ");
        terminal.keyboard.write_all(answer.as_bytes()).unwrap();
        let (shown, status) = terminal.end();
        assert_eq!(status.code(), Some(code), "{answer:?}: {shown:?}");
        assert_eq!(served.fake.events_cleared.lock().len(), cleared, "{answer:?}");
    }
}

#[test]
fn a_password_is_typed_twice_and_not_shown() {
    for (again, code, created) in [("s3same", 0, 1), ("s3sam", 2, 0)] {
        let served = serve();
        let arguments = ["credentials", "create", "basic", "n", "--username", "u"];
        let mut terminal = Terminal::start(command(&served, &arguments));
        terminal.wait_for("Password: ");
        terminal.keyboard.write_all(b"s3samee\x7f\r").unwrap();
        terminal.wait_for("Password again: ");
        terminal.keyboard.write_all(again.as_bytes()).unwrap();
        terminal.keyboard.write_all(b"\r").unwrap();
        let (shown, status) = terminal.end();
        assert_eq!(status.code(), Some(code), "{shown:?}");
        assert!(!shown.contains("s3sam"), "{shown:?}");
        let requests = served.auth.created.lock();
        assert_eq!(requests.len(), created, "{shown:?}");
        for request in requests.iter() {
            let Some(Proof::Basic(basic)) = request.credentials.clone().unwrap().proof else {
                panic!("{request:?}")
            };
            assert_eq!(basic.password.as_deref(), Some("s3same"));
        }
    }
}

#[test]
fn top_is_drawn_again_and_again_and_leaves_the_terminal_as_it_was() {
    let served = with_examples();
    *served.fake.step.lock() = 500;
    let mut terminal = Terminal::start(command(&served, &["top", "--interval", "200ms"]));
    terminal.wait_for("\u{1b}[?1049h");
    for _ in 0..3 {
        terminal.wait_for("2 integrations, ");
        terminal.wait_for("lake");
        terminal.seen.clear();
    }
    let (shown, status) = terminal.interrupt();
    assert_eq!(status.code(), Some(0), "{shown:?}");
    assert!(shown.ends_with("\u{1b}[?1049l"), "{shown:?}");
}

#[test]
fn long_work_shows_that_it_goes_on_and_then_no_more() {
    let served = with_examples();
    *served.fake.is_patient.lock() = true;
    served.fake.told.lock().push_back(vec![]);
    let wait = ["wait", "sensors", "--timeout", "1500ms"];
    let mut terminal = Terminal::start(command(&served, &wait));
    terminal.wait_for("waiting until sensors is ACTIVE (1 s)");
    let (shown, status) = terminal.end();
    assert_eq!(status.code(), Some(5), "{shown:?}");
    let (_, rest) = shown.rsplit_once("\u{1b}[2K").expect("the line is removed");
    assert!(rest.contains("error:") && !rest.contains("waiting"), "{shown:?}");
}
