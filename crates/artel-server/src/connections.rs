//! Connections: taken in, kept from holding the server up, and ended in an orderly way.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use artel_engine::EngineHandle;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

use crate::app::{App, ServedModel};
use crate::config::ServerConfig;
use crate::error::ServerError;
use crate::router::router;

/// Pause after the system could not hand over a connection, as when there are too many files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time in which answers that are complete get to their clients after the engine has stopped.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// A server that has its address.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
    app: Arc<App>,
}

impl Server {
    /// Takes the address, such as `127.0.0.1:8000`; port 0 is any free one.
    ///
    /// # Errors
    /// When the address cannot be had or the configuration makes no sense.
    pub async fn bind(
        address: &str,
        config: ServerConfig,
        model: ServedModel,
    ) -> Result<Self, ServerError> {
        let app = Arc::new(App::new(config, model));
        let router = router(Arc::clone(&app))?;
        let failed = |source| ServerError::Listen { address: address.to_owned(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, router, app })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is ready, then takes no more requests, gives those that run `grace` to
    /// finish, and returns when all connections are closed and the engine has ended.
    pub async fn run(self, stop: impl Future<Output = ()>, grace: Duration) {
        let Self { listener, router, app, .. } = self;
        let connections = GracefulShutdown::new();
        tokio::select! {
            () = stop => {}
            never = accept(&listener, &router, &app.config, &connections) => match never {},
        }
        drop(listener);
        tracing::info!(
            open = connections.count(),
            grace_s = grace.as_secs_f64(),
            "no more requests are taken; those that run may finish"
        );
        let engine = app.model.engine.clone();
        let ended = tokio::task::spawn_blocking(move || EngineHandle::shutdown(&engine, grace));
        let closed = connections.shutdown();
        tokio::pin!(closed);
        tokio::select! {
            () = &mut closed => {}
            _ = ended => {
                if tokio::time::timeout(FLUSH_TIME, closed).await.is_err() {
                    tracing::warn!("some clients did not read the end of their answers");
                }
                return;
            }
        }
        let engine = app.model.engine.clone();
        // A thread that cannot be waited for has panicked, which has been told.
        let _ = tokio::task::spawn_blocking(move || engine.shutdown(grace)).await;
    }
}

async fn accept(
    listener: &TcpListener,
    router: &Router,
    config: &ServerConfig,
    connections: &GracefulShutdown,
) -> Infallible {
    let places = Arc::new(Semaphore::new(config.connections_max));
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        let place = place.expect("this is a bug: nobody closes the semaphore");
        match listener.accept().await {
            Ok((stream, peer)) => {
                tracing::debug!(%peer, "connected");
                let connection = serve(stream, router.clone(), config, connections.watcher());
                tokio::spawn(keep(place, connection));
            }
            Err(error) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn keep(_place: OwnedSemaphorePermit, connection: impl Future<Output = ()>) {
    connection.await;
}

/// One connection from its first byte to its last. A client that closes its half while it waits
/// has gone away; what it asked for is dropped with the connection.
fn serve(
    stream: TcpStream,
    router: Router,
    config: &ServerConfig,
    watcher: Watcher,
) -> impl Future<Output = ()> + use<> {
    // A token is sent when it is there, not when the one before has been acknowledged.
    let no_delay = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(config.write_timeout));
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.read_timeout)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    async move {
        if let Err(error) = no_delay {
            tracing::debug!("{error}");
        }
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!("a connection ended: {error}");
        }
    }
}
