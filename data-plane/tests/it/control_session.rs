use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tbmq_proto::node::{
    ControlMessage, NodeMessage, Superseded, Welcome, control_message, node_message,
    node_session_service_server::{NodeSessionService, NodeSessionServiceServer},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    bus::TestBus,
    client::Client,
    plane::{Plane, config, until},
};

/// What the control plane does with its sessions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Hold,
    End,
    Supersede,
}

/// A control plane that notes what it hears, and ends sessions or supersedes the node when told.
#[derive(Clone)]
struct Stub {
    heard: Arc<Mutex<Vec<NodeMessage>>>,
    orders: watch::Receiver<Order>,
}

#[tonic::async_trait]
impl NodeSessionService for Stub {
    type SessionStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut messages = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        let Self { heard, mut orders } = self.clone();
        orders.mark_unchanged();
        tokio::spawn(async move {
            let welcome = Welcome { service_id: "control-1".to_owned(), heartbeat_ms: 100 };
            let welcome = control_message::Message::Welcome(welcome);
            sender.send(Ok(ControlMessage { message: Some(welcome) })).await.unwrap();
            loop {
                tokio::select! {
                    message = messages.message() => match message {
                        Ok(Some(message)) => heard.lock().push(message),
                        Ok(None) | Err(_) => return,
                    },
                    order = changed(&mut orders) => match order {
                        Order::Hold => {}
                        Order::End => return,
                        Order::Supersede => {
                            let superseded = Superseded { incarnation: "newer".to_owned() };
                            let message = Some(control_message::Message::Superseded(superseded));
                            sender.send(Ok(ControlMessage { message })).await.unwrap();
                            return;
                        }
                    },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn changed(orders: &mut watch::Receiver<Order>) -> Order {
    orders.changed().await.unwrap();
    *orders.borrow_and_update()
}

async fn serve(stub: Stub) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tonic::transport::Server::builder()
        .add_service(NodeSessionServiceServer::new(stub))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(async move { serving.await.unwrap() });
    address
}

#[tokio::test]
async fn the_node_registers_beats_comes_back_and_stops_when_it_is_superseded() {
    let (order, orders) = watch::channel(Order::Hold);
    let stub = Stub { heard: Arc::default(), orders };
    let address = serve(stub.clone()).await;
    let mut config = config();
    // The first is not there: the node tries the other one.
    config.control.grpc.endpoints = vec!["http://127.0.0.1:1".to_owned(), format!("http://{address}")];
    let mut plane = Plane::with(TestBus::new(), config).await;
    let _client = Client::v5(plane.address, "c").await;
    let hellos = || {
        let heard = stub.heard.lock();
        let hellos: Vec<_> = heard
            .iter()
            .filter_map(|message| match &message.message {
                Some(node_message::Message::Hello(hello)) => Some(hello.clone()),
                _ => None,
            })
            .collect();
        hellos
    };
    let has_beaten = || {
        stub.heard.lock().iter().any(|message| {
            matches!(&message.message, Some(node_message::Message::Heartbeat(beat)) if beat.connections == 1)
        })
    };
    until(has_beaten).await;
    let hello = hellos().remove(0);
    assert_eq!((&*hello.service_id, hello.addresses), ("node-1", vec![format!("mqtt://{}", plane.address)]));
    // The session is lost and found again; clients notice nothing.
    order.send_replace(Order::End);
    until(|| hellos().len() == 2).await;
    let mut client = Client::v5(plane.address, "d").await;
    client.hears_nothing().await;
    order.send_replace(Order::Supersede);
    let error = tokio::time::timeout(Duration::from_secs(30), plane.running.failed()).await.unwrap();
    assert!(error.to_string().contains("newer") && error.to_string().contains("node-1"), "{error}");
}
