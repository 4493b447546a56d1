//! A TCP port of the loopback interface that can be closed, with all its connections, and opened again.

use std::{future::Future, net::SocketAddr, time::Duration};

use anyhow::Result;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::postgres::free_port;

/// A port that is listened on; it closes with its connections when dropped.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    wanted: watch::Sender<bool>,
    open: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Port {
    /// Listens on a free port; each connection is handed to `serve`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn open<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Result<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // Nobody else is given the port while it is closed.
        let listener = TcpListener::bind(("127.0.0.1", free_port()?)).await?;
        let address = listener.local_addr()?;
        let wanted = watch::Sender::new(true);
        let (told, open) = watch::channel(true);
        let task = tokio::spawn(run(listener, address, wanted.subscribe(), told, serve));
        Ok(Self { address, wanted, open, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens or closes it, and waits until it is; closing ends every connection.
    ///
    /// # Errors
    /// When it has ended, by a panic of what serves.
    pub async fn set_open(&self, open: bool) -> Result<()> {
        self.wanted.send_replace(open);
        self.open.clone().wait_for(|is_open| *is_open == open).await?;
        Ok(())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run<F>(
    listener: TcpListener,
    address: SocketAddr,
    mut wanted: watch::Receiver<bool>,
    told: watch::Sender<bool>,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut listener = Some(listener);
    loop {
        match listener.take() {
            Some(open) => {
                accept(open, &mut wanted, &serve).await;
                told.send_replace(false);
            }
            None => {
                if wanted.wait_for(|wanted| *wanted).await.is_err() {
                    return;
                }
                match TcpListener::bind(address).await {
                    Ok(open) => {
                        listener = Some(open);
                        told.send_replace(true);
                    }
                    Err(error) => {
                        eprintln!("{address} can't be listened on again: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }
}

/// Serves until the port is to be closed, and ends its connections then.
async fn accept<F>(listener: TcpListener, wanted: &mut watch::Receiver<bool>, serve: &impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(serve(stream));
            }
            Some(_) = connections.join_next() => {}
            _ = wanted.wait_for(|wanted| !*wanted) => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}
