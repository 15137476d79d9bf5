// nvidia-imex stands in for NVIDIA's IMEX daemon: its configuration, signals, command service and peer connections are
// those of the real one, without GPU memory behind them.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"partita/simulator/imex/internal/imex"
)

func main() {
	path := flag.String("c", "/etc/nvidia-imex/config.cfg", "configuration file")
	flag.Parse()
	debug.SetGCPercent(20)
	log.SetFlags(log.Ldate | log.Lmicroseconds)
	if err := run(*path); err != nil {
		log.Printf("[ERROR] %v", err)
		os.Exit(1)
	}
}

func run(path string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGHUP)
	config, err := imex.ReadConfig(path)
	if err != nil {
		return err
	}
	log.Printf("[INFO] IMEX version %s is running with the configuration %s", imex.Version, path)
	d, err := newDaemon(config)
	if err != nil {
		return err
	}
	peers, err := listen(config.BindIP, config.ServerPort)
	if err != nil {
		return err
	}
	go d.watchFaults()
	go d.accept(peers)
	for index := range d.peers {
		go d.connect(index)
	}
	if err := d.serveCommands(); err != nil {
		return err
	}
	return d.handle(signals)
}

func (d *daemon) handle(signals chan os.Signal) error {
	for received := range signals {
		for d.hanging() {
			time.Sleep(100 * time.Millisecond)
		}
		switch received {
		case syscall.SIGUSR1:
			d.reload()
		case syscall.SIGHUP:
			log.Printf("[INFO] No buffered messages to flush")
		default:
			d.mutex.Lock()
			ignore := d.faults.IgnoreSigterm
			d.mutex.Unlock()
			if !ignore {
				d.stop()
				return nil
			}
		}
	}
	return nil
}

// serveCommands answers every line with this daemon's status, where the configuration enables it.
func (d *daemon) serveCommands() error {
	if !d.config.CmdEnabled {
		return nil
	}
	var listeners []net.Listener
	if d.config.CmdPort != 0 {
		listener, err := listen(d.config.CmdBindIP, d.config.CmdPort)
		if err != nil {
			return err
		}
		listeners = append(listeners, listener)
	}
	if d.config.CmdUnixPath != "" {
		if err := os.RemoveAll(d.config.CmdUnixPath); err != nil {
			return err
		}
		listener, err := net.Listen("unix", d.config.CmdUnixPath)
		if err != nil {
			return err
		}
		listeners = append(listeners, listener)
	}
	if len(listeners) == 0 {
		return fmt.Errorf("IMEX_CMD_ENABLED=1 needs IMEX_CMD_PORT or IMEX_CMD_UNIX_DOMAIN_PATH")
	}
	for _, listener := range listeners {
		go d.answer(listener)
	}
	return nil
}

func (d *daemon) answer(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Printf("[ERROR] command service: %v", err)
			time.Sleep(heartbeat)
			continue
		}
		go func() {
			lines := imex.NewLines(conn)
			defer lines.Close()
			for d.hanging() {
				time.Sleep(100 * time.Millisecond)
			}
			if err := lines.Send(d.status(), time.Second); err != nil {
				log.Printf("[INFO] command service: %v", err)
			}
		}()
	}
}
