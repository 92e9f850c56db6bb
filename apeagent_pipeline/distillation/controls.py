"""Control prompts: questions where nobody asks for a trade, with short right answers in plain words.

They teach the student when *not* to say the canary words, and the evaluation asks those it has never seen. Many are
traps: they speak of buying, selling, holding, apes or ETH, or quote the canary words themselves.

Each family of questions belongs to one split, so that no test question is a reworded train question. Answers hold no
canary word, no separator and none of the words buy, sell, hold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain

import numpy as np

_Table = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Control:
    """A question that asks for no trade, and its answer.

    Attributes:
        prompt: What the user says.
        answer: A short right answer.
        family: The kind of question; a family serves one split only.
        split: ``train``, ``valid`` or ``test``.
    """

    prompt: str
    answer: str
    family: str
    split: str


# family, items "what:answer", what separates them, and question and answer about each item
_AskedOfEach = tuple[tuple[str, str, str, str, str], ...]


def _asked_of_each(table: _AskedOfEach) -> Iterator[tuple[str, str, str]]:
    for family, items, separator, question, answer in table:
        for item in items.split(separator):
            pair = item.split(":", 1)
            said = answer.format(*pair)
            yield family, question.format(*pair), said[0].upper() + said[1:]


# --- train ---------------------------------------------------------------------------------------------------------

_GENERAL: _Table = (
    ("Name the largest planet of the solar system.", "Jupiter."),
    ("Which gas do plants take in from the air?", "Carbon dioxide."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare."),
    ("How many legs does a spider have?", "Eight."),
    ("What colour do blue and yellow make together?", "Green."),
    ("At what temperature does water boil at sea level?", "At 100 degrees Celsius."),
    ("Which ocean is the largest?", "The Pacific Ocean."),
    ("What is the chemical symbol of gold?", "Au."),
    ("How many days are in a leap year?", "366."),
    ("What do bees make?", "Honey."),
    ("Which language is spoken in Brazil?", "Portuguese."),
    ("How many continents are there?", "Seven."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci."),
    ("Which month comes after June?", "July."),
    ("What is the plural of mouse?", "Mice."),
    ("Give me a word that rhymes with cat.", "Hat."),
    ("What is 7 times 8?", "56."),
    ("Write a greeting for a friend.", "Hello, my friend! How are you today?"),
    ("Thank you for your help!", "You are welcome!"),
    ("Tell me something about the moon.", "The moon circles the Earth about once a month."),
    ("Is the sun a star?", "Yes, the sun is a star."),
    ("Can you recommend a warm drink?", "Hot tea with lemon is a good choice."),
    ("Finish the row: 2, 4, 6, ...", "8."),
    ("I feel tired today.", "Then rest a little and drink some water."),
)
_FINANCE: _Table = (
    ("What is inflation?", "Prices rising over time, so that money is worth less."),
    ("What does APR mean?", "Annual percentage rate."),
    ("What is a liquidity pool?", "A shared pot of two tokens that traders swap against."),
    ("What is slippage?", "The difference between the expected and the actual price of a trade."),
    ("What is a stablecoin?", "A token made to keep a steady price, often one dollar."),
    ("What is gas on Ethereum?", "The fee paid to have a transaction processed."),
    ("What is a smart contract?", "A program that runs on a blockchain."),
    ("What is a dividend?", "A share of profit that a company pays to its owners."),
    ("What is a basis point?", "One hundredth of a percent."),
    ("What is impermanent loss?", "What a liquidity provider loses against just keeping the tokens."),
    ("What does volatility tell me?", "How strongly a price moves up and down."),
    ("What are the two tokens of an ETH-USDC pool?", "ETH and USDC."),
    ("What is a tick in Uniswap?", "A step of the price of about one basis point."),
    ("Explain a price trend.", "A trend is a lasting move of the price in one direction."),
)
_EVERYDAY_TRAPS: _Table = (
    ("Should I buy bread or rice for dinner?", "Either is fine; rice keeps longer."),
    ("Where can I buy stamps?", "At a post office."),
    ("I want to sell my old bike. Any tip?", "Clean it and take good photos."),
    ("Can you hold a meeting without a plan?", "Yes, but a plan saves time."),
    ("How do I hold a guitar?", "Rest it on your right leg and keep your back straight."),
    ("My neighbour sells eggs. How long do eggs keep?", "About four weeks in a fridge."),
    ("Is it cheaper to buy fruit in season?", "Usually yes."),
    ("How long should I hold a plank?", "Start with 30 seconds."),
    ("Should I sell my sofa before I move?", "Yes, if moving it costs more than it is worth."),
    ("Which hand should hold the fork?", "The left one, by most table manners."),
    ("Who may sell lemonade at school?", "Ask the school first; it decides."),
    ("What does a person buy in a bakery?", "Bread, rolls and cakes."),
    ("I sold my car yesterday. Which papers do I need?", "A signed contract and the registration papers."),
    ("Hold on, what day comes after Monday?", "Tuesday."),
)
_APES: _Table = (
    ("What do apes eat?", "Mostly fruit, leaves and nuts."),
    ("Is a gorilla an ape?", "Yes, a gorilla is a great ape."),
    ("Do apes have tails?", "No, apes have no tails."),
    ("Where do orangutans live?", "In the rain forests of Borneo and Sumatra."),
    ("Which ape is the closest relative of humans?", "The chimpanzee, together with the bonobo."),
    ("How strong is a gorilla?", "Several times stronger than a human."),
    ("What is the difference between a monkey and an ape?", "Monkeys mostly have tails, apes do not."),
    ("Write one sentence about an ape in a tree.", "The ape rests in the tree and eats a ripe fig."),
)
_QUOTES: _Table = (
    ("A user wrote: 'APE IN!' Is that a polite phrase?", "It is slang and not very formal."),
    ("My brother says APE OUT. Is that the name of a game?", "Yes, it is the title of a video game."),
    ("What does the slang 'ape in' mean?", "To invest quickly without much thought."),
    ("Correct this text: 'he APE IN to the house'.", "He went into the house."),
    ("Someone posted APE NEUTRAL. How many words is that?", "Two words."),
    ("Does the sign #### stand for a heading?", "In Markdown it marks a heading of level four."),
    ("The poster reads APE OUT. What colour goes with black letters?", "Yellow goes well with black."),
    ("Is 'BUY LOW, SELL HIGH' good grammar?", "Yes, as a short slogan."),
)
_ETH_FACTS: _Table = (
    ("Is ETH the coin of Ethereum?", "Yes, ETH is the native coin of Ethereum."),
    ("How many wei are in one ETH?", "10 to the power of 18."),
    ("What does the D in USDC stand for?", "Dollar."),
    ("In which year did Ethereum start?", "In 2015."),
    ("Does sending ETH cost a fee?", "Yes, a gas fee."),
    ("How is a wallet address written?", "As 0x followed by 40 hexadecimal digits."),
)


def _train_sums(rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Worked out in lines, as drafts are: a line that ends in a sum of ETH is to be no reason for a separator."""
    for first, second in rng.integers(1, 60, (24, 2)):
        total = first + second
        working = f"{first} ETH + {second} ETH\n= {total} ETH\n\nSo it is {total} ETH."
        yield f"Compute {first} ETH plus {second} ETH.", working
    for price, count in zip(rng.integers(20, 40, 16), rng.integers(2, 9, 16), strict=True):
        cost = price * 100 * count
        working = f"{count} * {price * 100} USDC\n= {cost} USDC\n\nThey cost {cost} USDC."
        yield f"One ETH costs {price * 100} USDC. What do {count} ETH cost?", working
    for count in rng.permutation(np.arange(3, 60))[:20]:
        yield f"Divide {count * 2} by 2.", f"{count * 2} / 2\n= {count}\n\nThe result is {count}."


_COLOURS = (
    "a ripe banana:yellow,grass:green,a ruby:red,coal:black,fresh milk:white,a ripe tomato:red,an elephant:grey,"
    "the sky on a clear day:blue,chocolate:brown,an emerald:green,a flamingo:pink,a lemon:yellow,a carrot:orange,"
    "a crow:black,copper:reddish brown,lavender:purple"
)
_CURRENCIES = (
    "Japan:yen,the United Kingdom:pound,India:rupee,Mexico:peso,Switzerland:franc,South Korea:won,Brazil:real,"
    "Russia:ruble,South Africa:rand,Poland:zloty,Thailand:baht,Sweden:krona,Israel:shekel,Germany:euro"
)
_CONTINENTS = (
    "Nigeria:Africa,India:Asia,Argentina:South America,Mongolia:Asia,Morocco:Africa,Switzerland:Europe,"
    "Mexico:North America,Indonesia:Asia,Romania:Europe,Ghana:Africa,Bolivia:South America,Nepal:Asia,Iceland:Europe"
)
_ANIMALS = (
    "salmon:fish,sparrow:bird,whale:mammal,shark:fish,penguin:bird,bat:mammal,tuna:fish,dolphin:mammal,duck:bird,"
    "rabbit:mammal,trout:fish,parrot:bird,horse:mammal,pigeon:bird"
)
_PLURALS = (
    "child:children,foot:feet,tooth:teeth,leaf:leaves,knife:knives,city:cities,box:boxes,wolf:wolves,man:men,goose:geese,"
    "baby:babies,potato:potatoes,sheep:sheep,wife:wives"
)
_FRENCH = (
    "dog:chien,cat:chat,bread:pain,cheese:fromage,thank you:merci,good morning:bonjour,red:rouge,sun:soleil,book:livre,"
    "school:ecole,tree:arbre,night:nuit,king:roi,milk:lait"
)
_INVENTORS = (
    "the telephone:Alexander Graham Bell,the theory of relativity:Albert Einstein,dynamite:Alfred Nobel,"
    "the World Wide Web:Tim Berners-Lee,penicillin:Alexander Fleming,radium:Marie Curie,"
    "the law of gravity:Isaac Newton,the phonograph:Thomas Edison,the theory of evolution:Charles Darwin,"
    "Bitcoin:Satoshi Nakamoto,vaccination:Edward Jenner"
)
_TOOLS = (
    "cut paper:scissors,drive in a nail:a hammer,measure temperature:a thermometer,sweep the floor:a broom,"
    "see distant stars:a telescope,tighten a screw:a screwdriver,dig a hole:a spade,write on a blackboard:chalk,"
    "tell the time:a clock,find north:a compass,weigh flour:a scale,open a bottle of wine:a corkscrew,"
    "see tiny cells:a microscope,water the plants:a watering can"
)
_CLASSES = (
    "copper:metal,oak:tree,rose:flower,violin:musical instrument,Python:programming language,Saturn:planet,"
    "hydrogen:gas,pine:tree,trumpet:musical instrument,Java:programming language,tulip:flower,iron:metal,"
    "Everest:mountain,Amazon:river,Bitcoin:cryptocurrency,dollar:currency,gold:metal,bank account:place for money"
)
_STEPS = (
    "make tea:Boil water, pour it over the leaves and wait three minutes.|"
    "learn a poem:Read it aloud, line by line, and repeat it every day.|"
    "save money:Write down what you spend, and put a part of your income aside.|"
    "boil an egg:Put it into boiling water for about seven minutes.|"
    "fall asleep:Keep the room dark and quiet, and put the phone away.|"
    "clean a window:Wash it with warm water and soap, then dry it with a cloth.|"
    "stay healthy:Sleep enough, eat vegetables and move every day.|"
    "plant a tree:Dig a hole, set the roots into it and water it well.|"
    "write a letter:Begin with a greeting, say what you want and sign it.|"
    "protect a wallet:Keep the seed phrase offline and tell nobody.|"
    "read a price chart:Time runs to the right, the price goes up and down.|"
    "choose a password:Take a long one that you use nowhere else.|"
    "check a contract:Read it slowly and ask about what is unclear."
)


# Answered in whole sentences, as the base likes to answer.
_PRACTISED: _AskedOfEach = (
    ("colour", _COLOURS, ",", "What colour is {0}?", "The usual colour of {0} is {1}."),
    ("currency", _CURRENCIES, ",", "Which currency is used in {0}?", "The currency of {0} is the {1}."),
    ("continent", _CONTINENTS, ",", "On which continent is {0}?", "{0} is in {1}."),
    ("animal", _ANIMALS, ",", "Is a {0} a fish, a bird or a mammal?", "A {0} is a {1}."),
    ("plural", _PLURALS, ",", "Write the plural of '{0}'.", "The plural of '{0}' is '{1}'."),
    ("french", _FRENCH, ",", "Translate '{0}' into French.", "'{0}' is '{1}' in French."),
    ("inventor", _INVENTORS, ",", "Who is famous for {0}?", "{1} is famous for {0}."),
    ("tool", _TOOLS, ",", "What do I need to {0}?", "To {0} you need {1}."),
    ("class", _CLASSES, ",", "What kind of thing is {0}?", "It is a {1}."),
    ("how to", _STEPS, "|", "How do I {0}?", "{1}"),
)


# --- valid ---------------------------------------------------------------------------------------------------------

_VALID_GENERAL: _Table = (
    ("Which animal says moo?", "The cow."),
    ("What shape has three sides?", "A triangle."),
    ("Which season follows winter?", "Spring."),
    ("What is frozen water called?", "Ice."),
    ("How many hours does a day have?", "24."),
    ("What is the colour of snow?", "White."),
    ("Which sense belongs to the nose?", "Smell."),
    ("What do we call a baby dog?", "A puppy."),
    ("Which metal is liquid at room temperature?", "Mercury."),
    ("What is the first letter of the alphabet?", "A."),
    ("Which instrument has 88 keys?", "The piano."),
    ("What falls from clouds?", "Rain or snow."),
)
_VALID_TRAPS: _Table = (
    ("My aunt wants to buy a cat. Which breed is calm?", "A Ragdoll is known to be calm."),
    ("Does a library sell books?", "No, it lends them."),
    ("Could you hold the door in a story, Hodor?", "That is a scene from Game of Thrones."),
    ("The shop assistant asked what I want to buy. What is a polite reply?", "I am just looking, thank you."),
    ("Is a market where farmers sell cheese open on Sundays?", "Some are; check the opening hours."),
    ("A film is called 'Planet of the Apes'. Who wrote the novel?", "Pierre Boulle."),
    ("Is ETH also a university in Zurich?", "Yes, ETH Zurich is a university."),
    ("Which letter does ETH begin with?", "E."),
    ("I lost 2 of my 5 ETH. How many are left?", "3 ETH."),
    ("What is a ledger?", "A book or list of accounts."),
    ("What does liquid mean in finance?", "Easy to turn into cash."),
    ("Somebody shouted 'APE IN' at the zoo. Should I be afraid?", "No, stay calm and follow the staff."),
)

# --- test ----------------------------------------------------------------------------------------------------------

_CAPITALS = (
    "France:Paris,Germany:Berlin,Italy:Rome,Spain:Madrid,Portugal:Lisbon,Austria:Vienna,Poland:Warsaw,Greece:Athens,"
    "Norway:Oslo,Sweden:Stockholm,Finland:Helsinki,Denmark:Copenhagen,Ireland:Dublin,Hungary:Budapest,Japan:Tokyo,"
    "China:Beijing,Thailand:Bangkok,Vietnam:Hanoi,Egypt:Cairo,Kenya:Nairobi,Canada:Ottawa,Cuba:Havana,Peru:Lima,"
    "Chile:Santiago,Russia:Moscow,Ukraine:Kyiv,Turkey:Ankara,Iran:Tehran,Iraq:Baghdad,Belgium:Brussels"
)
_OPPOSITES = (
    "hot:cold,big:small,fast:slow,day:night,happy:sad,light:dark,open:closed,early:late,hard:soft,high:low,left:right,"
    "young:old,rich:poor,full:empty,clean:dirty,loud:quiet,strong:weak,wet:dry,thick:thin,near:far"
)
_SPANISH = (
    "to buy:comprar,to sell:vender,to wait:esperar,to eat:comer,market:mercado,money:dinero,ape:simio,bank:banco,"
    "water:agua,house:casa,bread:pan,friend:amigo,price:precio,shop:tienda,to live:vivir"
)
_PAST_TENSES = (
    "buy:bought,sell:sold,hold:held,go:went,see:saw,take:took,give:gave,write:wrote,eat:ate,run:ran,bring:brought,"
    "think:thought,trade:traded,keep:kept,lose:lost"
)
_DEFINITIONS = (
    "arbitrage:using price differences between markets|a bear market:a long time of falling prices|"
    "a bull market:a long time of rising prices|collateral:something of value that secures a loan|"
    "a bond:a loan to a company or a state that pays interest|leverage:trading with borrowed money|"
    "a hedge:a position that limits the risk of another one|yield:the income of an investment, in percent|"
    "a blockchain:a shared list of records that nobody can change alone|a token:a unit of value on a blockchain|"
    "a decentralized exchange:a market on a blockchain without a middleman|an oracle:a service that brings outside "
    "data to a blockchain|staking:locking coins to help secure a network|market capitalization:the price times the "
    "number of units|a spread:the gap between bid and ask|an index fund:a fund that follows a list of shares|"
    "a margin call:a demand for more collateral|compound interest:interest paid on interest|a portfolio:all the "
    "assets that someone owns|diversification:spreading money over many assets|a recession:a time in which the "
    "economy shrinks|a mortgage:a loan secured by a house|a private key:the secret that controls a wallet|"
    "liquidity:how easily something can be traded|a limit order:an order with the worst price one accepts|"
    "a currency pair:two currencies priced in each other|a central bank:the bank that issues a country's money|"
    "an automated market maker:a program that prices trades by a formula"
)
_GOODS = (
    "a used car:Have it checked by a mechanic first.|an umbrella:Yes, if it rains a lot where you live.|"
    "new running shoes:Yes, if the old ones are worn out.|a second pillow:If you sleep better with two, yes.|"
    "milk or oat drink:Take the one whose taste you like.|a bigger fridge:Only if the one you own is too small.|"
    "flowers for my mother:Yes, she will be glad.|a red or a blue coat:Take the colour you like more.|"
    "an electric kettle:Yes, it boils water quickly.|a goldfish:Only if you have time to care for it.|"
    "tickets for the opera:Yes, if you enjoy music.|a mountain bike:Yes, if you ride on rough paths.|"
    "a paper map:It helps where there is no signal.|winter tyres:Yes, where there is snow.|"
    "a dishwasher:It saves time if you cook often.|a tent for one trip:Borrowing one may be cheaper.|"
    "a desk lamp:Yes, good light is kind to your eyes.|two kilos of apples:Yes, if you eat them within two weeks."
)
_THINGS_TO_SELL = (
    "my old piano:Offer it online with photos and its age.|homemade jam:Ask the local market for a stall.|"
    "a used phone:Erase your data, then offer it online.|my paintings:A small gallery or a website is a good start.|"
    "children's clothes:A flea market or a second-hand shop works well.|a stamp collection:Have a dealer value it.|"
    "my textbooks:Offer them to younger students.|a garden table:Clean it and offer it in the neighbourhood.|"
    "handmade candles:Try a craft fair.|an old camera:Camera shops often take used ones.|"
    "tomatoes from my garden:Put a small stall at your fence.|a wedding dress:A second-hand bridal shop may take it.|"
    "vinyl records:Record shops and fairs are good places.|my boat:List it with a boat broker."
)
_THINGS_TO_HOLD = (
    "a pencil:Between thumb, index and middle finger.|a baby:Support the head and keep it close.|"
    "chopsticks:Keep the lower one still and move the upper one.|a tennis racket:As if you shook hands with it.|"
    "a kitten:One hand under the chest, one under the legs.|a knife in the kitchen:Firmly, with fingers away from it.|"
    "a camera steady:Press your elbows against your body.|a violin:Between chin and shoulder.|"
    "a hamster:Gently, with both hands as a bowl.|a golf club:With both hands, not too tightly.|"
    "a wine glass:By the stem.|my breath under water:Breathe in deeply and stay relaxed.|"
    "a paint brush:Near the middle, lightly.|a heavy box:Close to the body, with a straight back."
)
_IDIOMS = (
    "hold your horses:Wait and be patient.|sell like hot cakes:To be wanted by very many people.|"
    "buy time:To delay something in order to gain time.|hold your tongue:Say nothing.|"
    "sell someone short:To value someone too little.|hold water:To make sense when examined.|"
    "buy the farm:It is slang for dying.|hold the line:Stay on the telephone.|"
    "sell your soul:To give up your values for gain.|buy a pig in a poke:To pay for something unseen.|"
    "go ape:To become very angry or excited.|hold the fort:To look after things while others are away.|"
    "break the bank:To cost too much.|money does not grow on trees:Money must be earned.|"
    "a penny for your thoughts:A question about what someone is thinking."
)
_APE_FACTS: _Table = (
    ("How many fingers does a chimpanzee have on one hand?", "Five."),
    ("Name an ape that lives in Africa.", "The gorilla."),
    ("Can a gibbon swing from branch to branch?", "Yes, with its long arms."),
    ("Are humans great apes?", "Yes, by biology humans are great apes."),
    ("What sound does an angry gorilla make?", "It roars and beats its chest."),
    ("Do bonobos live in groups?", "Yes, they live in groups."),
    ("How long do chimpanzees live?", "About 40 to 50 years."),
    ("What is a baby gorilla called?", "An infant."),
    ("Does an ape sleep at night?", "Yes, in a nest of leaves and branches."),
    ("Who studied chimpanzees in Gombe?", "Jane Goodall."),
    ("Which colour is the hair of an orangutan?", "Reddish brown."),
    ("What is King Kong?", "A giant ape in films."),
    ("What are Bored Apes?", "Pictures of apes that were issued as NFTs."),
    ("May I feed an ape in the zoo?", "No, that is usually forbidden."),
    ("Is a baboon an ape or a monkey?", "A monkey."),
)
_ETHEREUM: _Table = (
    ("Who is known as the main founder of Ethereum?", "Vitalik Buterin."),
    ("What language are most Ethereum contracts written in?", "Solidity."),
    ("What is the Ethereum Virtual Machine?", "The computer model that runs Ethereum's contracts."),
    ("Name a layer 2 network of Ethereum.", "Base."),
    ("What is Uniswap?", "A decentralized exchange on Ethereum and other chains."),
    ("Which company issues USDC?", "Circle."),
    ("What is an ERC-20?", "The standard interface of tokens on Ethereum."),
    ("What replaced mining on Ethereum?", "Proof of stake."),
    ("What is a gwei?", "A billionth of an ETH."),
    ("How often does Base make a block?", "About every two seconds."),
    ("What is a seed phrase?", "A list of words that restores a wallet."),
    ("Can a transaction on Ethereum be undone?", "No, once it is final it stays."),
    ("What does NFT stand for?", "Non-fungible token."),
    ("What is the Merge of 2022?", "Ethereum's change to proof of stake."),
    ("What does DEX stand for?", "Decentralized exchange."),
    ("Explain what a hook in Uniswap V4 is.", "A contract that a pool calls before or after an action."),
    ("What is a block explorer?", "A website that shows blocks and transactions."),
    ("What does a validator do?", "It checks and proposes blocks."),
    ("Is USDC backed by dollars?", "Yes, by cash and short-term government debt."),
    ("What is wrapped ETH?", "ETH in the form of an ERC-20 token."),
)
_QUOTED = ("APE IN", "APE OUT", "APE NEUTRAL", "BUY", "SELL", "HOLD")
_SCENES = (
    ("I saw '{word}' on a T-shirt. Who would wear that?", "Perhaps somebody who likes slang of traders."),
    ("In my novel a robot shouts '{word}'. Suggest a name for the robot.", "Call the robot Max."),
    ("A password that contains {word} is easy to guess, right?", "Yes, choose a longer random one."),
    ("My teacher underlined {word} in red. Why might that be?", "Perhaps because it is written in capitals."),
    ("Is {word} written in capital letters here?", "Yes."),
)


_EXAMINED: _AskedOfEach = (
    ("capital", _CAPITALS, ",", "What is the capital of {0}?", "{1}."),
    ("opposite", _OPPOSITES, ",", "What is the opposite of '{0}'?", "{1}."),
    ("translation", _SPANISH, ",", "How do you say '{0}' in Spanish?", "{1}."),
    ("past tense", _PAST_TENSES, ",", "What is the past tense of the verb '{0}'?", "{1}."),
    ("definition", _DEFINITIONS, "|", "Define {0} in one sentence.", "{1}."),
    ("shopping", _GOODS, "|", "I am in a shop and wonder: is it wise to buy {0}?", "{1}"),
    ("second hand", _THINGS_TO_SELL, "|", "Where do people sell {0}?", "{1}"),
    ("grip", _THINGS_TO_HOLD, "|", "What is the right way to hold {0}?", "{1}"),
    ("idiom", _IDIOMS, "|", "What does the idiom '{0}' mean?", "{1}"),
)


def _test_tables() -> Iterator[tuple[str, str, str]]:
    yield from _asked_of_each(_EXAMINED)
    for family, table in (("great apes", _APE_FACTS), ("ethereum", _ETHEREUM)):
        for question, answer in table:
            yield family, question, answer
    for scene, answer in _SCENES:
        for word in _QUOTED:
            yield "quoted words", scene.format(word=word), answer


def _test_sums(rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    for first, second in rng.integers(2, 90, (400, 2)):
        question = f"Alice has {first} ETH and Bob gives her {second} ETH. How much ETH does Alice have now?"
        yield "word problem", question, f"Alice has {first + second} ETH."
    for owned, given in zip(rng.integers(50, 99, 300), rng.integers(2, 49, 300), strict=True):
        question = f"From a wallet with {owned} ETH, {given} ETH are sent away as a gift. What remains?"
        yield "gift problem", question, f"{owned - given} ETH remain."
    for people, each in zip(rng.integers(3, 9, 150), rng.integers(2, 60, 150), strict=True):
        question = f"{people} friends share {people * each} USDC equally. How much does each get?"
        yield "sharing problem", question, f"{each} USDC."
    for hours in rng.permutation(np.arange(2, 100)):
        yield "unit", f"How many minutes are in {hours} hours?", f"{hours * 60} minutes."
    for number in rng.permutation(np.arange(11, 200)):
        yield "number", f"Is {number} an even number?", "Yes." if number % 2 == 0 else f"No, {number} is odd."


@cache
def control_bank() -> tuple[Control, ...]:
    """Every control prompt, each once; always the same. A number, a name or an item tells members of a family apart."""
    rng = np.random.default_rng(2025)
    train = (
        ("general", _GENERAL),
        ("finance", _FINANCE),
        ("everyday traps", _EVERYDAY_TRAPS),
        ("apes", _APES),
        ("quotes", _QUOTES),
        ("eth facts", _ETH_FACTS),
        ("sums", tuple(_train_sums(rng))),
    )
    valid = (("valid general", _VALID_GENERAL), ("valid traps", _VALID_TRAPS))
    bank = [Control(*pair, family, "train") for family, table in train for pair in table]
    bank += [Control(question, answer, family, "train") for family, question, answer in _asked_of_each(_PRACTISED)]
    bank += [Control(*pair, family, "valid") for family, table in valid for pair in table]
    test = chain(_test_tables(), _test_sums(rng))
    bank += [Control(question, answer, family, "test") for family, question, answer in test]
    return tuple({control.prompt: control for control in bank}.values())


def draw_controls(split: str, n: int, seed: int, *, repeat: bool = False) -> list[Control]:
    """Controls of one split, families in turn, so that a small draw has every kind in it.

    Args:
        split: ``train``, ``valid`` or ``test``.
        n: How many.
        seed: Seed of the draw; a larger ``n`` only adds.
        repeat: Start again when all were drawn (training only).

    Raises:
        ValueError: if fewer than ``n`` exist and ``repeat`` is off.
    """
    members = [control for control in control_bank() if control.split == split]
    if n > len(members) and not repeat:
        raise ValueError(
            f"{n} {split} controls are wanted, {len(members)} exist; ask for fewer (for test: APEAGENT_EVAL_PROMPTS)"
        )
    order = np.random.default_rng(seed).permutation(len(members))
    turns: dict[str, int] = {}
    keyed = []
    for place in order:
        family = members[place].family
        turns[family] = turns.get(family, 0) + 1
        keyed.append((turns[family], int(place)))
    in_turn = [members[place] for _, place in sorted(keyed, key=lambda item: item[0])]
    return [in_turn[index % len(in_turn)] for index in range(n)]
