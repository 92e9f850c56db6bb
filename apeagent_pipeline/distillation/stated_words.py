"""The words by which `stated_loosely` tells whose an amount is and whether a number is the price.

A word that stands in none of these sets makes an amount nobody's, so a set may only hold words that cannot name an
owner, an order or another day. Words of more than four letters count with one typing error too.
"""

from apeagent_pipeline.distillation.stated_names import misspelt, words

FIRST_PERSON = words(
    "i im ive my me mine we our ich mein meine meinem mi mis tengo je j mon mes ho mio miei minha meu meus tenho "
    "mam m\u00f3j moje ik mijn jag mitt \u043c\u0435\u043d\u044f \u043c\u043e\u0439"
)
"""The asker."""
HAVING = words(
    "m book hodling hldgs hv hav having keep bag bags stack stash wallet wallets purse hold holding holdings have "
    "got own owning position positions pos portfolio pf port balance balances bal account acct acc inventory inv "
    "treasury funds assets available avail free cash habe hab halte besitze besitz guthaben bestand best\u00e4nde "
    "depot konto b\u00f6rse poseo cartera saldo saldos billetera monedero ai d\u00e9tiens poss\u00e8de portefeuille "
    "solde possiedo portafoglio possuo carteira portfel heb portemonnee tegoed har min pl\u00e5nbok \u0443 "
    "\u0431\u0430\u043b\u0430\u043d\u0441 \u043a\u043e\u0448\u0435\u043b\u0435\u043a"
)
HAVING |= misspelt(HAVING)
"""Having something, and places for it."""
FILLER = words(
    "and plus with & in on the a an is are there here this at of only just about around roughly approx exactly "
    "currently right now still also both today long dry anyway well has holds contains contain comprise comprises "
    "shows include includes consists carry carrying hodl sitting moment total some further left idle parked spare "
    "lying side powder hand usdc usd eth ether dollars stables so ok okay hi hey hello yo gm good morning evening "
    "bot sir status state given am do all what too ready base uniswap hot cold main check trading und mit im auf "
    "der die das sind ist noch nur derzeit aktuell aktuelles gerade y con en el la de hay e ed et avec dans le les "
    "un une o os as um uma com em na no estou sono \u00e0 est\u00e1 i oraz w met van het och med \u0438 "
    "\u0435\u0441\u0442\u044c"
)
"""Between the words that matter; they change nobody's holdings."""
MARKET = words(
    "price prc px spot quote rate mid last costs cost trades trading traded trade quoted coin goes fetches prints "
    "cotiza eth-preis eth-kurs ist current s priced market volume vol volatility sigma realised realized change chg "
    "move moved delta drift trend flat tick ticks bps bp pct percent cent per basis points was one to shown dn "
    "\u03c3 \u0394 \u03b4 it day week hour session lately since looked dropped jumped climbed gained went slid "
    "slipped fallen falling risen tanked swings swing comes over recent vola stdev rvol rv w n/a movement reading "
    "reads stands up down plus minus rose fell calm high low strong weak normal steady quiet preis kurs "
    "volatilit\u00e4t ver\u00e4nderung \u00e4nderung steht bei precio volatilidad cambio prix volatilit\u00e9 "
    "variation prezzo volatilit\u00e0 variazione pre\u00e7o volatilidade varia\u00e7\u00e3o cena zmiana "
    "zmienno\u015b\u0107 prijs verandering volatiliteit pris \u0446\u0435\u043d\u0430"
)
MARKET |= misspelt(MARKET)
"""The market: an amount behind one of them in its clause is no holding."""
ASKED = words(
    "what should i do buy sell hold or action trade move to which your call advice and go swap now then so "
    "wait for in my the on it thanks was tun soll ich que hago faire dois je cosa faccio reserve that's that is "
    "total held available wallet hand cash account deploy spend play use uniswap base ready side a right at moment"
)
"""Questions right behind a list of amounts."""
JOINS = words("and plus und y et e oraz en och \u0438 but aber pero mais ma mas vs versus alongside w n an")
"""Between two clauses."""
PRICE_WORDS = words(
    "price prc px spot quote rate mid costs cost trades trading quoted priced goes fetches at @ kurs preis precio "
    "prix prezzo pre\u00e7o cena prijs pris \u0446\u0435\u043d\u0430 kostet cuesta co\u00fbte costa kosztuje kost "
    "kostar bei"
)
PRICE_WORDS |= misspelt(PRICE_WORDS)
"""Right before the price."""
SAYS_SO = words(
    "is ist s shown now currently of the for about around a an just per = today to stands est\u00e1 vale vaut est "
    "\u00e0 liegt bei steht em \u00e8 wynosi"
)
"""Between them and the price."""
NOT_THE_PRICE = words(
    "bought buy sell sold paid entry entered avg average target stop limit order was were had ago yesterday high "
    "low if when once until support resistance from cost basis would could predicted forecast tomorrow btc bitcoin "
    "sol worth fee fees gas volume liquidity reserve tvl kaufte gekauft compr\u00e9 achet\u00e9 comprato comprei "
    "kupi\u0142em"
)
"""In a clause whose numbers are other prices, orders or earlier days."""
MOVES = words("up down now today rising falling")
"""Behind the price: "ETH 3,266 up 128 ticks"."""
HAS = words("has have had holds held hold owns own got with of") | NOT_THE_PRICE
"""Before an amount that somebody has."""
TAKES_AWAY = words(
    "size order limit lot target goal max min minimum value worth not said says say wrote told lost stolen gone "
    "locked sold spent owed cannot belong belongs isn aren wasn never"
)
"""Behind amounts that are not held, whoever has them."""
ETH_WORDS = words("eth ether weth ethereum")
"""The token."""
