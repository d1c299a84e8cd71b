from isocost.cli import main

main()
