module partita/simulator/imex

go 1.24
