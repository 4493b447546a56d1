//! A stage between a client and a real Kafka, for tests: it can keep answers back, and be away.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};

use crate::conformance::Behaviour;

const PRODUCE: i16 = 0;
const METADATA: i16 = 3;

pub(super) struct Proxy {
    address: SocketAddr,
    upstream: SocketAddr,
    state: Arc<State>,
}

struct State {
    behaviour: Mutex<Behaviour>,
    changed: Condvar,
    connections: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens at `address` and passes on to `upstream`.
    pub(super) fn start(address: SocketAddr, upstream: SocketAddr) -> Self {
        let state = State {
            behaviour: Mutex::new(Behaviour::Confirm),
            changed: Condvar::new(),
            connections: Mutex::default(),
        };
        let proxy = Self { address, upstream, state: Arc::new(state) };
        proxy.listen();
        proxy
    }

    pub(super) fn behave(&self, behaviour: Behaviour) {
        let before = std::mem::replace(&mut *self.state.behaviour.lock(), behaviour);
        self.state.changed.notify_all();
        if behaviour == Behaviour::Away {
            if before != Behaviour::Away {
                // Wakes the listening thread, which ends.
                drop(TcpStream::connect(self.address));
                while TcpStream::connect(self.address).is_ok() {}
            }
            for stream in self.state.connections.lock().drain(..) {
                // It may have ended by itself.
                drop(stream.shutdown(Shutdown::Both));
            }
        } else if before == Behaviour::Away {
            self.listen();
        }
    }

    fn listen(&self) {
        let listener = TcpListener::bind(self.address).unwrap();
        let (upstream, state) = (self.upstream, self.state.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if *state.behaviour.lock() == Behaviour::Away {
                    return;
                }
                let server = TcpStream::connect(upstream).unwrap();
                state.connections.lock().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let asked = Arc::new(Mutex::new(HashMap::new()));
                let (up, down) =
                    ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
                std::thread::spawn({
                    let asked = asked.clone();
                    move || drop(requests(up.0, up.1, &asked))
                });
                std::thread::spawn({
                    let state = state.clone();
                    move || drop(answers(down.0, down.1, &asked, &state))
                });
            }
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.behave(Behaviour::Away);
    }
}

/// Requests without an answer: kind by number.
type Asked = Mutex<HashMap<[u8; 4], i16>>;

fn requests(mut from: TcpStream, mut to: TcpStream, asked: &Asked) -> io::Result<()> {
    loop {
        let frame = frame(&mut from)?;
        let kind = i16::from_be_bytes([frame[4], frame[5]]);
        asked.lock().insert([frame[8], frame[9], frame[10], frame[11]], kind);
        to.write_all(&frame)?;
    }
}

fn answers(mut from: TcpStream, mut to: TcpStream, asked: &Asked, state: &State) -> io::Result<()> {
    loop {
        let frame = frame(&mut from)?;
        let kind = asked.lock().remove(&[frame[4], frame[5], frame[6], frame[7]]);
        if matches!(kind, Some(PRODUCE | METADATA)) {
            let mut behaviour = state.behaviour.lock();
            while *behaviour == Behaviour::Hold {
                state.changed.wait(&mut behaviour);
            }
            if *behaviour == Behaviour::Away {
                return Ok(());
            }
        }
        to.write_all(&frame)?;
    }
}

/// Size and content of a request or an answer.
fn frame(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame)?;
    let size = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
    frame.resize(4 + size as usize, 0);
    from.read_exact(&mut frame[4..])?;
    Ok(frame)
}
