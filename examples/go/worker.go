// An HTTP worker that takes its listener from LISTEN_FDS, sends READY=1 and WATCHDOG=1 to
// NOTIFY_SOCKET, and on SIGTERM drains without failing a request.  The standard library alone.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const firstFd = 3

func listener() (net.Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != "1" {
		return nil, fmt.Errorf("no listener was passed to this process: LISTEN_FDS=%q, LISTEN_PID=%q",
			os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_PID"))
	}
	file := os.NewFile(firstFd, "listener")
	defer file.Close() // FileListener duplicates it
	return net.FileListener(file)
}

func notify(state string) {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return
	}
	manager, err := net.Dial("unixgram", address)
	if err != nil {
		log.Print("notify: ", err)
		return
	}
	defer manager.Close()
	manager.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	manager.Write([]byte(state))
}

// A worker; while its lock is held it sends no heartbeat.
type worker struct {
	lock     sync.Mutex
	answered int
	draining atomic.Bool
	open     sync.WaitGroup
}

func (w *worker) ServeHTTP(out http.ResponseWriter, in *http.Request) {
	w.lock.Lock()
	defer w.lock.Unlock()
	if in.URL.Path == "/block" {
		select {}
	}
	w.answered++
	if w.draining.Load() {
		out.Header().Set("Connection", "close")
	}
	fmt.Fprintf(out, "go %d", os.Getpid())
}

func (w *worker) beat() {
	usec, err := strconv.Atoi(os.Getenv("WATCHDOG_USEC"))
	if err != nil || usec <= 0 {
		return
	}
	for range time.Tick(time.Duration(usec) * time.Microsecond / 4) {
		w.lock.Lock()
		w.lock.Unlock()
		notify("WATCHDOG=1")
	}
}

func (w *worker) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		w.open.Add(1)
	case http.StateClosed, http.StateHijacked:
		w.open.Done()
	}
}

func main() {
	accepting, err := listener()
	if err != nil {
		log.Fatal(err)
	}
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	w := &worker{}
	server := &http.Server{Handler: w, ConnState: w.count, IdleTimeout: 20 * time.Second}
	served := make(chan struct{})
	go func() {
		server.Serve(accepting)
		close(served)
	}()
	go w.beat()
	notify("READY=1\nWATCHDOG=1")
	<-terminated
	// Not Shutdown at once: it closes idle connections, on which a request may be on its way.
	w.draining.Store(true)
	accepting.Close()
	<-served // all accepted connections are counted
	w.open.Wait()
	server.Shutdown(context.Background())
}
