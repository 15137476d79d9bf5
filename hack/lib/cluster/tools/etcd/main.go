// Command etcd is the etcd server: a module of its own, because the etcd project does not publish its main program as one.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
