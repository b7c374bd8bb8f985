// Listens, and hands the listener to the command it is given: as descriptor 3, which
// ExtraFiles makes of its first.  Says the address on its standard output first.
package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	file, err := listener.(*net.TCPListener).File()
	check(err)
	check(listener.Close())
	command := exec.Command(os.Args[1], os.Args[2:]...)
	command.ExtraFiles = []*os.File{file}
	command.Stderr = os.Stderr
	check(command.Run())
}
