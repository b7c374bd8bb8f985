// Accepts one connection on a listener it was given, with Go's own net.FileListener:
// `accept extra` takes descriptor 3 as os/exec's ExtraFiles numbers it, `accept listen`
// takes it as LISTEN_FDS tells.  The connection gets the network's name.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	if os.Args[1] == "listen" {
		if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != "1" {
			check(fmt.Errorf("LISTEN_PID=%s LISTEN_FDS=%s", os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")))
		}
	}
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	check(err)
	connection, err := listener.Accept()
	check(err)
	_, err = fmt.Fprintf(connection, "go %s", listener.Addr().Network())
	check(err)
	check(connection.Close())
}
